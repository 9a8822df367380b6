"""The state of training in host memory: copied between two steps, and written while the next steps run."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.errors import Reason, StageError

_ALIGNMENT = 64
_PIECE = 64 << 20
"""Bytes of a piece of host memory. torch rounds pinned memory up to a power of two, which would waste most of a large one."""


@dataclass(frozen=True)
class Snapshot:
    """The state after an optimizer step; all tensors are in host memory and belong to it.

    `adapter` has peft's names. `optimizer`, `scheduler` and `randomness` have the form that transformers reads, and
    `state` has the members of its TrainerState. The checkpoints of the steps in `keep` must stay.
    """

    step: int
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    randomness: dict[str, Any]
    state: dict[str, Any]
    keep: frozenset[int] = frozenset()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in distinct_tensors([self.adapter, self.optimizer]))

    def require_finite(self) -> None:
        """Raise StageError(NonFiniteLoss) if a weight or a state of the optimizer is NaN or infinite."""
        for kind, tree in (("adapter", self.adapter), ("optimizer", self.optimizer)):
            for tensor in distinct_tensors(tree):
                if not _is_finite(tensor):
                    raise StageError(
                        Reason.NON_FINITE_LOSS,
                        f"the training state must be finite, found NaN or infinity in the {kind} after step "
                        f"{self.step}; lower training.learningRate and check the data",
                    )


class HostMemory:
    """Host memory for copies of tensors, which the next copy of the same sizes uses again.

    Fresh memory takes longer than the copy itself, because the kernel clears every page.
    """

    def __init__(self) -> None:
        self._pieces: list[torch.Tensor] = []

    def copy(self, tree: Any) -> Any:
        """Return `tree` (dicts, lists and tuples) with a copy of each tensor; the last copies become invalid.

        A tensor that occurs twice is copied once.
        """
        tensors = distinct_tensors(tree)
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if on_gpu:
            # Paged states are host memory that kernels may still write.
            torch.cuda.synchronize()
        places, sizes = _layout(tensors)
        if [piece.numel() for piece in self._pieces] != sizes:
            self._pieces = []
            self._pieces = [_host_memory(size, pinned=on_gpu) for size in sizes]
        copies: dict[int, torch.Tensor] = {}
        for tensor, (piece, offset) in zip(tensors, places, strict=True):
            view = _view(self._pieces[piece], offset, tensor)
            copies[id(tensor)] = view.copy_(tensor.detach(), non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        return _replaced(tree, copies)


def distinct_tensors(tree: Any) -> list[torch.Tensor]:
    """List each tensor in `tree` (dicts, lists and tuples) once, in the order of its first occurrence."""
    found: dict[int, torch.Tensor] = {}

    def visit(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            found.setdefault(id(node), node)
        elif isinstance(node, dict):
            for value in node.values():
                visit(value)
        elif isinstance(node, list | tuple):
            for value in node:
                visit(value)

    visit(tree)
    return list(found.values())


def _replaced(tree: Any, copies: dict[int, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        return copies[id(tree)]
    if isinstance(tree, dict):
        return {name: _replaced(value, copies) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_replaced(value, copies) for value in tree)
    return tree


def _layout(tensors: list[torch.Tensor]) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the place of each tensor (number of a piece of memory, offset in bytes), and the sizes of all pieces."""
    places, sizes = [], [0]
    for tensor in tensors:
        size = -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        if sizes[-1] and sizes[-1] + size > _PIECE:
            sizes.append(0)
        places.append((len(sizes) - 1, sizes[-1]))
        sizes[-1] += size
    return places, sizes


def _host_memory(size: int, *, pinned: bool) -> torch.Tensor:
    """Return memory for copies. From a GPU, pinned memory is filled several times faster."""
    if pinned:
        # Without pinned memory, for example at a limit of the container, the copy is only slower.
        with suppress(RuntimeError):
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.empty(size, dtype=torch.uint8)


def _view(piece: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Return memory of `piece` with the type and shape of `like`."""
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    # Every view gets a storage of its own, because torch saves whole storages.
    flat = torch.frombuffer(piece.numpy(), dtype=like.dtype, count=like.numel(), offset=offset)
    return flat.view(like.shape)


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # One pass without a mask of the tensor's size; NaN is passed on.
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))
