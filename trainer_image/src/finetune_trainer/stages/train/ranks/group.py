"""The ranks of a run as one of them sees them: who it is, and what all of them know.

torch.distributed connects them. Its collectives take CPU tensors through gloo, and GPU tensors through NCCL.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


_T = TypeVar("_T")

TIMEOUT_SECONDS = 600.0
"""Time for which a rank waits for the others. Ranks that share work evenly reach each other within seconds."""
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")


class RankDoesNotFitError(Exception):
    """The GPU of a rank is out of memory. A new launch takes the next rung, which the workspace names."""


class Ranks:
    """A process that has the whole run: it shares nothing and waits for nobody."""

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and reports."""
        return self.rank == 0

    def gather(self, value: _T) -> list[_T]:
        """Return the value of every rank, in their order. Every rank must call it. Values are pickled."""
        return [value]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of every rank, in their order. Every rank must call it with as many numbers."""
        return [list(numbers)]

    def from_first(self, find: Callable[[], _T]) -> _T:
        """Return on every rank what `find` returns on the first one; it is called only there."""
        return find()

    def meet(self) -> None:
        """Wait until every rank has called this."""

    def mesh(self, device: str) -> DeviceMesh:
        """Return the ranks as torch's sharding takes them. Every rank must call it. `device` is "cuda" or "cpu"."""
        raise NotImplementedError(f"a process that has the whole run has no mesh of {device}")


ALONE = Ranks()


class ProcessGroup(Ranks):
    """One rank of torch's default process group. Its calls raise RuntimeError if another rank is lost or too late."""

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """`timeout_seconds` is the longest time of a call."""
        self._timeout = timedelta(seconds=timeout_seconds)
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def gather(self, value: _T) -> list[_T]:
        """See the base class."""
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """See the base class. Unlike `gather`, this is one collective of a few bytes."""
        own = torch.tensor(numbers, dtype=torch.float64)
        found = torch.empty((self.size * len(numbers),), dtype=torch.float64)
        distributed.all_gather_into_tensor(found, own)
        values: list[list[float]] = found.view(self.size, len(numbers)).tolist()
        return values

    def from_first(self, find: Callable[[], _T]) -> _T:
        """See the base class."""
        found: list[Any] = [find() if self.is_first else None]
        distributed.broadcast_object_list(found, src=0)
        value: _T = found[0]
        return value

    def meet(self) -> None:
        """See the base class."""
        self.gather_numbers([0.0])

    def mesh(self, device: str) -> DeviceMesh:
        """See the base class."""
        if device == "cuda":
            # Each rank sees one GPU.
            torch.cuda.set_device(0)
        # Weights are gathered beside the sum of gradients. Ranks begin that at other moments if they use other experts, and
        # one group would need the same order on all.
        group: Any = distributed.new_group(timeout=self._timeout)  # torch has no type for it
        return DeviceMesh.from_group(group, device, list(range(self.size)))


def is_on_one_node() -> bool:
    """Return whether all ranks of torchrun's environment variables are on this node. Ask before they are removed."""
    return os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"]


@contextmanager
def joined(device: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[ProcessGroup]:
    """Join the group that torchrun's environment variables describe, for the time of the `with` statement.

    `device` is "cuda" or "cpu". transformers and accelerate must not see these variables: they would share steps in their
    own way, and they know neither the passes nor the learned tokens of a step.
    """
    if is_on_one_node():
        # The machine's own name may lead nowhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=timeout_seconds)
    )
    for name in _VARIABLES:
        os.environ.pop(name, None)
    yield ProcessGroup(timeout_seconds)
    # After an error the others may be lost, and NCCL would wait for them. The process ends then.
    distributed.destroy_process_group()


def is_lost_rank(error: BaseException) -> bool:
    """Return whether `error` only says that another rank is lost or too late. torch has no class for gloo's errors."""
    if isinstance(error, distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "connection closed by peer")
    )
