"""Packed experts on fake tensors, as TRAIN has them: in NF4, multiplied one after another by the model's own code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from finetune_trainer.model.packed_parameters import PackedParameter, PackedPart
from finetune_trainer.model.packed_weight import Nf4Rows, PackedWeight

_BLOCK, _NESTED = 64, 256


def give_packed_weights(model: Any, parameters: Sequence[PackedParameter]) -> None:
    """Put packed weights in the place of the parameters. Call it with a FakeTensorMode active."""
    for parameter in parameters:
        parts: list[list[Nf4Rows]] = [[] for _ in range(parameter.experts)]
        for part in sorted(parameter.parts, key=lambda part: part.first):
            for expert, rows in _rows(parameter, part):
                parts[expert].append(rows)
        path, _, name = parameter.name.rpartition(".")
        owner = model.get_submodule(path)
        del owner._parameters[name]
        setattr(owner, name, PackedWeight(parameter, parts))


def _rows(parameter: PackedParameter, part: PackedPart) -> Iterator[tuple[int, Nf4Rows]]:
    """Yield (expert, its rows) of a tensor of the weight files."""
    matrix = (part.last - part.first, parameter.columns)
    elements = matrix[0] * matrix[1]
    together = part.expert is None and parameter.experts > 1
    count = parameter.experts if together else 1
    blocks = -(-elements // _BLOCK)
    packed = torch.empty(-(-elements * count // 2), dtype=torch.uint8)
    scales = torch.empty(blocks * count, dtype=torch.uint8)
    nested = torch.empty(-(-blocks * count // _NESTED))
    tables = torch.empty(16), torch.empty(256), torch.empty(())
    for place in range(count):
        yield (
            place if together else part.expert or 0,
            Nf4Rows(
                packed[place * elements // 2 : (place + 1) * elements // 2],
                scales[place * blocks : (place + 1) * blocks],
                tables[0],
                nested,
                tables[1],
                tables[2],
                matrix,
                place * blocks,
            ),
        )
