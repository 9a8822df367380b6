"""Finds the matrices of a model that are no linear layers of their own, and the tensors of its weight files that hold them.

transformers keeps the experts of a layer as one parameter (experts, rows, columns), but many weight files hold one tensor for
each matrix of each expert. GPT-2 has matrices that multiply from the other side (`Conv1D`). All of them are quantized like
linear layers: blocks of 64 weights that never reach into another expert.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 64
# Stand-ins of a parameter's matrices: small enough for every expert of a large model, and each element is told apart.
_ROWS, _COLUMNS = 4, 2
_ROUTERS = frozenset({"router", "gate", "wg", "gate_weight"})
_READ = ("dt_proj",)
# Gemma 3n clips these small matrices while it runs.
_CLIPPED = ("prediction_coefs", "correction_coefs", "modality_router")
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True)
class PackedPart:
    """A tensor of the weight files: the matrix of one expert or its rows `first` to `last`; all matrices if `expert` is None."""

    tensor: str
    expert: int | None
    first: int
    last: int

    @property
    def module(self) -> str:
        """The name of the part among the quantized modules."""
        return self.tensor.removesuffix(".weight")


@dataclass(frozen=True)
class PackedParameter:
    """A parameter of `experts` matrices (rows, columns), and the tensors of the weight files that hold it.

    `transposed` says that the layer computes inputs times matrix, so that rows are inputs. `is_conv1d` says that it is the
    matrix of a `Conv1D`, which has no axis for experts; a layer of one expert has that axis.
    """

    name: str
    experts: int
    rows: int
    columns: int
    transposed: bool
    parts: tuple[PackedPart, ...]
    is_conv1d: bool = False

    @property
    def elements(self) -> int:
        """Weights of all matrices."""
        return self.experts * self.rows * self.columns

    def shape(self, part: PackedPart) -> tuple[int, ...]:
        """Return the shape of a part's tensor in the weight files."""
        matrix = (part.last - part.first, self.columns)
        return (self.experts, *matrix) if part.expert is None and not self.is_conv1d else matrix


def packed_names(model: Any) -> tuple[str, ...]:
    """Return the names of `packed_parameters`, which takes no time."""
    return tuple(name for name, _ in _candidates(model))


def packed_parameters(model: Any) -> tuple[PackedParameter, ...]:
    """Return the packed parameters of a `model`, which may be on the meta device.

    Raises StageError(UnsupportedModel) if the weight files hold a parameter in a way that is not understood, or if a block
    of 64 weights would reach into the next expert.
    """
    found = stacked_parameters(model)
    if not found:
        return ()
    parts = parts_of(model, found)
    parameters = []
    for name, (owner, shape) in found.items():
        experts, rows, columns = shape
        scaled = tuple(
            PackedPart(part.tensor, part.expert, part.first * rows // _ROWS, part.last * rows // _ROWS)
            for part in parts[name]
        )
        transposed, is_conv1d = _is_transposed(owner, model), isinstance(owner, Conv1D)
        parameters.append(PackedParameter(name, experts, rows, columns, transposed, scaled, is_conv1d))
    for parameter in parameters:
        _require_whole(parameter, model)
    return tuple(parameters)


def kept_layers(model: Any) -> frozenset[str]:
    """Return the linear layers that are never quantized nor adapted.

    Some choose experts or weigh a shared one. Others are those of state spaces whose weights the model's code reads: it
    multiplies with the weight itself, past an adapter.
    """
    found: set[str] = set()
    for path, module in model.named_modules():
        found.update(
            f"{path}.{name}" for name in _CLIPPED if isinstance(getattr(module, name, None), torch.nn.Linear)
        )
        if isinstance(getattr(module, "conv1d", None), torch.nn.Conv1d):
            found.update(
                f"{path}.{name}" for name in _READ if isinstance(getattr(module, name, None), torch.nn.Linear)
            )
        experts = getattr(module, "experts", None)
        if not isinstance(experts, torch.nn.Module):
            continue
        count = _expert_count(experts)
        for name, layer in module.named_modules():
            parts = name.split(".")
            if not isinstance(layer, torch.nn.Linear) or "experts" in parts:
                continue
            if layer.out_features in (1, count) or not _ROUTERS.isdisjoint(parts):
                found.add(f"{path}.{name}" if path else name)
    return frozenset(found)


def _expert_count(experts: Any) -> int:
    if isinstance(experts, torch.nn.ModuleList):
        return len(experts)
    return max((parameter.shape[0] for parameter in experts.parameters() if parameter.ndim == 3), default=0)


def stacked_parameters(model: Any) -> dict[str, tuple[Any, tuple[int, int, int]]]:
    """Return the module and the shape of each parameter with a matrix for each expert, and of each `Conv1D`, by name."""
    return dict(_candidates(model))


def _candidates(model: Any) -> Iterator[tuple[str, tuple[Any, tuple[int, int, int]]]]:
    for path, module in model.named_modules():
        if isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            yield f"{path}.weight", (module, (1, rows, columns))
            continue
        if isinstance(module, _CONVOLUTIONS):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim != 3 or not parameter.is_floating_point() or min(parameter.shape[1:]) < 2:
                continue
            own = f"{path}.{name}" if path else name
            if "expert" in own or getattr(module, "num_experts", None) == parameter.shape[0]:
                yield own, (module, tuple(parameter.shape))


def parts_of(model: Any, found: dict[str, tuple[Any, tuple[int, int, int]]]) -> dict[str, list[PackedPart]]:
    """Return the tensors of the weight files that hold the parameters `found` of a model. Their rows are those of stand-ins.

    transformers turns stand-ins of the parameters into tensors of the weight files, and the results show what became of them.
    Raises StageError(UnsupportedModel) if that is not understood.
    """
    stand_ins: dict[str, torch.Tensor] = {}
    starts: list[int] = []
    total = 0
    for name, (module, shape) in found.items():
        matrix = (_ROWS, _COLUMNS) if isinstance(module, Conv1D) else (shape[0], _ROWS, _COLUMNS)
        stand_ins[name] = torch.arange(total, total + prod(matrix)).reshape(matrix)
        starts.append(total)
        total += prod(matrix)
    names = list(found)
    parts: dict[str, list[PackedPart]] = {name: [] for name in names}
    try:
        held = revert_weight_conversion(model, stand_ins)
    except Exception as error:
        raise _not_understood(model, names[0], f"{type(error).__name__}: {error}") from error
    for tensor, value in held.items():
        name = names[bisect_right(starts, int(value.min())) - 1]
        part = _part(tensor, value, stand_ins[name])
        if part is None:
            raise _not_understood(model, name, tensor)
        parts[name].append(part)
    return parts


def _part(tensor: str, value: torch.Tensor, stand_in: torch.Tensor) -> PackedPart | None:
    if value.shape == stand_in.shape and torch.equal(value, stand_in):
        return PackedPart(tensor, None, 0, _ROWS)
    if value.ndim != 2 or stand_in.ndim != 3 or value.shape[1] != _COLUMNS:
        return None
    place = int(value[0, 0] - stand_in[0, 0, 0])
    expert, first = place // (_ROWS * _COLUMNS), place % (_ROWS * _COLUMNS) // _COLUMNS
    last = first + value.shape[0]
    same = torch.equal(value, stand_in[expert, first:last])
    return PackedPart(tensor, expert, first, last) if same else None


def _is_transposed(module: Any, model: Any) -> bool:
    if isinstance(module, Conv1D):
        return True
    declared = getattr(module, "is_transposed", None)
    if declared is not None:
        return bool(declared)
    outputs = getattr(module, "output_size", None)
    if outputs is not None:
        return bool(next(module.parameters()).shape[1] != outputs)
    # Otherwise the width of the model tells which axis of the first matrix is the input's.
    width = model.config.get_text_config().hidden_size
    first = next(parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3)
    return bool(first.shape[1] == width and first.shape[2] != width)


def _require_whole(parameter: PackedParameter, model: Any) -> None:
    elements = parameter.rows * parameter.columns
    held = sum(prod(parameter.shape(part)) for part in parameter.parts)
    if held != parameter.elements:
        raise _not_understood(model, parameter.name, f"{held} of {parameter.elements} weights")
    stacked = any(part.expert is None for part in parameter.parts) and parameter.experts > 1
    if stacked and elements % _BLOCK:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"a matrix of an expert must have a multiple of {_BLOCK} weights, found {elements} in {parameter.name} of "
            f"{type(model).__name__}, so that blocks would reach into the next expert; choose another model",
        )


def _not_understood(model: Any, name: str, found: str) -> StageError:
    return StageError(
        Reason.UNSUPPORTED_MODEL,
        f"each matrix of an expert must stand in the weight files as rows of one tensor, found {name} of "
        f"{type(model).__name__} as {found}; choose another model",
    )
