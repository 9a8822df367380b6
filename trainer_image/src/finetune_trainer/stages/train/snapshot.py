"""The state of training in host memory: copied between two steps, and written while the next steps run."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune_trainer.errors import Reason, StageError

_ALIGNMENT = 64


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
        self._memory: Any = None
        self._registered = False

    def copy(self, tree: Any) -> Any:
        """Return `tree` (dicts, lists and tuples) with a copy of each tensor; the last copies become invalid.

        A tensor that occurs twice is copied once.
        """
        tensors = distinct_tensors(tree)
        if any(tensor.is_cuda for tensor in tensors):
            # Paged states are host memory that kernels may still write.
            torch.cuda.synchronize()
        offsets = _offsets(tensors)
        self._reserve(offsets[-1], pinned=any(tensor.is_cuda for tensor in tensors))
        copies: dict[int, torch.Tensor] = {}
        for tensor, offset in zip(tensors, offsets, strict=False):
            copies[id(tensor)] = self._view(tensor, offset).copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.synchronize()
        return _replaced(tree, copies)

    def _view(self, tensor: torch.Tensor, offset: int) -> torch.Tensor:
        if not tensor.numel():
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        # Every view gets a storage of its own, because torch saves whole storages.
        flat = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        return flat.view(tensor.shape)

    def _reserve(self, size: int, *, pinned: bool) -> None:
        if self._memory is not None and len(self._memory) == size:
            return
        self._release()
        self._memory = np.empty(size, dtype=np.uint8)
        if pinned and size:
            # Pinned memory is copied several times faster. Without it, the copy is only slower.
            error = torch.cuda.cudart().cudaHostRegister(self._memory.ctypes.data, size, 0)
            self._registered = int(error) == 0

    def _release(self) -> None:
        if self._registered:
            torch.cuda.cudart().cudaHostUnregister(self._memory.ctypes.data)
        self._registered, self._memory = False, None


def random_states(*, cuda: bool) -> dict[str, Any]:
    """Return the states of all generators, as transformers' Trainer saves them."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 -- libraries draw from numpy's global generator
        "cpu": torch.random.get_rng_state(),
    }
    if cuda:
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states


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


def _offsets(tensors: list[torch.Tensor]) -> list[int]:
    """Return the offset of each tensor in one piece of memory, and its size."""
    offsets = [0]
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # One pass without a mask of the tensor's size; NaN is passed on.
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))
