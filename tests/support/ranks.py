"""Process groups for tests in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def lone_group(folder: Path) -> Iterator[DeviceMesh]:
    """Join a group with this process alone, in which every collective is real."""
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


@contextmanager
def imagined_rank(rank: int, size: int) -> Iterator[DeviceMesh]:
    """Be one of several ranks without the others. It has its part of the weights, and nothing can be gathered."""
    distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (size,))
    finally:
        distributed.destroy_process_group()
