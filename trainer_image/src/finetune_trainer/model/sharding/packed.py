"""A parameter of many matrices in 4 bits whose bytes and scales are parameters, so that FSDP2 shares them out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from torch.distributed.tensor import DTensor

from finetune_trainer.model.packed_weight import Nf4Rows, PackedWeight
from finetune_trainer.model.sharding.linear import stand_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finetune_trainer.model.packed_parameters import PackedParameter, PackedPart

# bitsandbytes is only partly typed; Any is written once here instead of at every call.
bnb: Any = bitsandbytes
_BLOCK = 64


@dataclass(frozen=True)
class Piece:
    """A tensor of the weight files among those that hold a parameter: its bytes and its blocks of 64 weights."""

    part: PackedPart
    bytes: int
    blocks: int


def pieces_of(parameter: PackedParameter) -> tuple[Piece, ...]:
    """Return the tensors that hold a parameter, in the order in which `ShardedPackedWeight` has them."""
    found = []
    for part in sorted(parameter.parts, key=lambda part: (part.expert or 0, part.first)):
        elements = prod(parameter.shape(part))
        found.append(Piece(part, -(-elements // 2), -(-elements // _BLOCK)))
    return tuple(found)


@dataclass(frozen=True)
class _Place:
    """Where the rows of a matrix are. `first_block` counts the blocks of their tensor before them."""

    bytes: slice
    blocks: slice
    shape: tuple[int, int]
    first_block: int
    constants: Any


class ShardedPackedWeight(PackedWeight):
    """A packed parameter. `packed` (bytes, 1) and `absmax` (blocks, 1) are frozen parameters of bytes.

    They have the tensors of the weight files one after another. Only the small constants of these tensors are whole on every
    rank. Products, and what they keep for the backward pass, are those of the base class.
    """

    def __init__(
        self, parameter: PackedParameter, constants: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        """`constants` has for each tensor the small ones by their names in a checkpoint, without `absmax`."""
        pieces = pieces_of(parameter)
        super().__init__(parameter, ())
        self.places = _places(parameter, pieces, constants)
        sizes = sum(piece.bytes for piece in pieces), sum(piece.blocks for piece in pieces)
        self.packed, self.absmax = (
            torch.nn.Parameter(stand_in((size, 1), torch.uint8), requires_grad=False) for size in sizes
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.packed.device

    def rows(self, expert: int) -> list[Nf4Rows]:
        """See the base class. They are read anew each time, because a parameter is another one while it is gathered."""
        packed, scales = self.packed, self.absmax
        if isinstance(packed, DTensor):
            # Its slice would wait for the other ranks.
            raise RuntimeError(f"{self.parameter.name} must be gathered before its matrices are read")  # noqa: TRY004 -- not a wrong argument
        return [
            Nf4Rows(
                packed[place.bytes].flatten(),
                scales[place.blocks].flatten(),
                place.constants.code,
                place.constants.state2.absmax,
                place.constants.state2.code,
                place.constants.offset,
                place.shape,
                place.first_block,
            )
            for place in self.places[expert]
        ]


def _places(
    parameter: PackedParameter,
    pieces: Sequence[Piece],
    constants: Mapping[str, Mapping[str, torch.Tensor]],
) -> list[list[_Place]]:
    """Return for each expert where its rows are, in order."""
    found: list[list[_Place]] = [[] for _ in range(parameter.experts)]
    begin = block = 0
    for piece in pieces:
        part = piece.part
        shape = (part.last - part.first, parameter.columns)
        state = _state(constants[part.tensor])
        held = range(parameter.experts) if part.expert is None else (part.expert,)
        # A tensor of several matrices has whole blocks of each (`packed_parameters`).
        size, blocks = piece.bytes // len(held), piece.blocks // len(held)
        for number, expert in enumerate(held):
            first, first_block = begin + number * size, number * blocks
            places = slice(first, first + size), slice(block + first_block, block + first_block + blocks)
            found[expert].append(_Place(*places, shape, first_block, state))
        begin, block = begin + piece.bytes, block + piece.blocks
    return found


def _state(constants: Mapping[str, torch.Tensor]) -> Any:
    nothing = torch.empty(0, dtype=torch.uint8)
    device = next(iter(constants.values())).device
    return bnb.functional.QuantState.from_dict(qs_dict={**constants, "absmax": nothing}, device=device)
