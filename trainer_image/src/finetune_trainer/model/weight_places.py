"""Where the weight files of a model hold its tensors, if they hold them in another way than the model does.

While transformers loads some families, it renames tensors, cuts one into the weights of several layers, or joins several.
It does the reverse when it saves a model, so its own code tells the places.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import revert_weight_conversion

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_WIDTH = 2


@dataclass(frozen=True)
class Rows:
    """Rows `first` to `last` of a tensor of the weight files. The last axis is the width of a row in a matrix."""

    tensor: str
    first: int
    last: int

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.last - self.first

    @property
    def module(self) -> str:
        """The name of the tensor among the quantized ones."""
        return self.tensor.removesuffix(".weight")


@dataclass(frozen=True)
class WeightPlaces:
    """The tensors that files and model hold in different ways.

    `renamed` has the model's name of a tensor by its name in the files: GPT-NeoX's files call the head `embed_out.weight`,
    the model calls it `lm_head.weight`. `cut` has for a tensor of the model the rows of a larger tensor of the files.
    `joined` has the tensors of the files whose rows, below each other, are one tensor of the model. `shapes` has the shapes of
    all tensors of the files that are cut or joined. `unknown` names those that transformers changes in another way.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    cut: Mapping[str, Rows] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()

    def cut_from(self, tensor: str) -> dict[str, Rows]:
        """Return the tensors of the model that are rows of a `tensor` of the files."""
        return {name: rows for name, rows in self.cut.items() if rows.tensor == tensor}


@dataclass(frozen=True)
class _Run:
    """Rows of a tensor of the files, from `first` on, that are rows of a tensor of the model, from `own` on."""

    name: str
    own: int
    first: int
    count: int


def weight_places(model: Any, packed: Collection[str]) -> WeightPlaces:
    """Return where the files hold the tensors of a `model`, which may be on the meta device.

    `packed` names parameters of many matrices, which `model.packed_parameters` places.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in packed}
    own = {id(tensor): name for name, tensor in state.items()}
    held = revert_weight_conversion(model, state)
    renamed = {
        name: own[id(tensor)]
        for name, tensor in held.items()
        if id(tensor) in own and own[id(tensor)] != name
    }
    converted = {name: tensor for name, tensor in held.items() if id(tensor) not in own}
    # A name that another tensor of the model has would be read as that one.
    unknown = renamed.keys() & state.keys()
    kept = {id(tensor) for tensor in held.values()}
    left = {name: tuple(tensor.shape) for name, tensor in state.items() if id(tensor) not in kept}
    found = _Placing(left).places(model, converted) if left or converted else WeightPlaces()
    return WeightPlaces(
        {name: known for name, known in renamed.items() if name not in unknown} | dict(found.renamed),
        found.cut,
        found.joined,
        found.shapes,
        found.unknown | unknown,
    )


class _Placing:
    """Lets transformers convert small stand-ins, whose elements are all different, and sees where each row is."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._starts: list[int] = []
        self._names = list(shapes)
        self._stand_ins: dict[str, torch.Tensor] = {}
        # Zeros are what a conversion adds.
        total = 1
        for name, shape in shapes.items():
            small = (*shape[:1], *(min(_WIDTH, size) for size in shape[1:]))
            self._stand_ins[name] = torch.arange(total, total + prod(small)).reshape(small)
            self._starts.append(total)
            total += prod(small)

    def places(self, model: Any, converted: Collection[str]) -> WeightPlaces:
        try:
            held = revert_weight_conversion(model, self._stand_ins)
        except Exception:  # noqa: BLE001 -- a conversion that reads other values; its tensors are then unknown
            return WeightPlaces(unknown=frozenset(converted) or frozenset(self._shapes))
        renamed: dict[str, str] = {}
        cut: dict[str, Rows] = {}
        pieces: dict[str, list[tuple[int, str, int]]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        unknown: set[str] = set()
        for tensor, value in held.items():
            runs = self._runs(value)
            whole = [run.own == 0 and run.count == self._shapes[run.name][0] for run in runs or ()]
            if not runs:
                unknown.add(tensor)
                continue
            shapes[tensor] = (value.shape[0], *self._shapes[runs[0].name][1:])
            if all(whole) and len(runs) == 1:
                renamed |= {tensor: runs[0].name} if tensor != runs[0].name else {}
                del shapes[tensor]
            elif all(whole):
                cut |= {run.name: Rows(tensor, run.first, run.first + run.count) for run in runs}
            elif len(runs) == 1:
                pieces.setdefault(runs[0].name, []).append((runs[0].own, tensor, runs[0].count))
            else:
                unknown.add(tensor)
        joined = dict(self._joined(pieces))
        placed = {*renamed.values(), *cut, *joined, *(held.keys() & self._shapes.keys())}
        unknown |= {tensor for name, parts in pieces.items() if name not in joined for _, tensor, _ in parts}
        # What is not found at all is named as the model does.
        unknown |= self._shapes.keys() - placed if not unknown else set()
        return WeightPlaces(renamed, cut, joined, shapes, frozenset(unknown))

    def _runs(self, value: torch.Tensor) -> list[_Run] | None:
        """Return the rows of a converted stand-in; None if they are not whole rows of stand-ins in order."""
        if value.ndim == 0 or value.numel() == 0 or value.dtype.is_floating_point:
            return None
        rows = value.reshape(value.shape[0], -1)
        width = rows.shape[1]
        if not torch.equal(rows, rows[:, :1] + torch.arange(width)) or int(rows.min()) < 1:
            return None
        runs: list[_Run] = []
        for first, number in enumerate(rows[:, 0].tolist()):
            index = bisect_right(self._starts, number) - 1
            name = self._names[index]
            if self._shapes[name][1:] != self._shapes[runs[0].name if runs else name][1:]:
                return None
            own, rest = divmod(number - self._starts[index], width)
            if rest or prod(self._stand_ins[name].shape[1:]) != width:
                return None
            last = runs[-1] if runs else None
            if last is not None and (last.name, last.own + last.count) == (name, own):
                runs[-1] = _Run(name, last.own, last.first, last.count + 1)
            else:
                runs.append(_Run(name, own, first, 1))
        return runs

    def _joined(
        self, pieces: Mapping[str, list[tuple[int, str, int]]]
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield (tensor of the model, its tensors in the files) of those whose pieces are whole together."""
        for name, parts in pieces.items():
            ordered = sorted(parts)
            ends = [own + count for own, _, count in ordered]
            if [own for own, _, _ in ordered] == [0, *ends[:-1]] and ends[-1] == self._shapes[name][0]:
                yield name, tuple(tensor for _, tensor, _ in ordered)
