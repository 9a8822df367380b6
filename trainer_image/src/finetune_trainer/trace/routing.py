"""Lets the model's own code of experts run on fake tensors.

Routing reads values, which fake tensors lack. So it is even here: some experts of a layer get all rows, each as many as the
others. What a layer keeps does not depend on the way in which rows are shared out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

EXPERTS = 8
"""Experts of a layer that get rows, if it has so many."""


class _Chosen(int):
    """The number of a chosen expert. Code takes it as a row of the result of `nonzero`, or as a tensor with one element."""

    def __getitem__(self, _place: int) -> int:
        return int(self)

    def item(self) -> int:
        """Return the number."""
        return int(self)


class _Hits(list[_Chosen]):
    """The result of `nonzero`, of a mask with `size` places."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(_Chosen(expert) for expert in range(count))
        self._size = size

    def squeeze(self, _dimension: int = -1) -> list[_Chosen]:
        """Return the numbers as a vector. Nemotron, whose code asks for it, has one place more than experts."""
        return self[: self._size - 1]


@contextmanager
def even_routing(experts: int | None = EXPERTS) -> Iterator[None]:
    """Let code find even routing over `experts` in place of the positions that a mask holds; None is all of them.

    The code of transformers asks which experts are chosen (`nonzero`), and then for the rows of each (`where`).
    """
    nonzero, where = torch.Tensor.nonzero, torch.where
    count = 1

    def chosen(mask: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        nonlocal count
        if mask.ndim != 1:
            return nonzero(mask, *arguments, **named)
        count = mask.shape[0] if experts is None else min(experts, mask.shape[0])
        return _Hits(count, mask.shape[0])

    def places(*arguments: Any, **named: Any) -> Any:
        if len(arguments) != 1 or named:
            return where(*arguments, **named)
        mask: torch.Tensor = arguments[0]
        rows = -(-mask.numel() // count)
        return tuple(torch.zeros(rows, dtype=torch.long) for _ in range(mask.ndim))

    with patch.object(torch.Tensor, "nonzero", chosen), patch.object(torch, "where", places):
        yield
