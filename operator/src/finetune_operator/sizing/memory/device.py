"""Device memory that torch does not count: CUDA context, workspaces and fragmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.terms import MemoryItem

if TYPE_CHECKING:
    from finetune_operator.sizing.gpus.gpu import Gpu
    from finetune_operator.sizing.memory.stack import StackProfile

# CublasHandlePool.cpp: 32 MiB for each handle and stream on compute capability 9.0 or higher, else 8.125 MiB. The
# forward thread and the autograd thread each have a handle.
_WORKSPACE = 4096 * 2 * 1024 + 16 * 8 * 1024
_WORKSPACE_SM90 = 4096 * 8 * 1024
_HANDLES = 2
_SM90 = (9, 0)


def device_items(peak: int, stack: StackProfile, gpu: Gpu | None) -> tuple[MemoryItem, ...]:
    """Return the items on top of a peak of `peak` bytes. Without a `gpu`, the larger workspace is assumed."""
    large = gpu is None or gpu.compute_capability is None or gpu.compute_capability >= _SM90
    workspace = _WORKSPACE_SM90 if large else _WORKSPACE
    return (
        MemoryItem("CUDA context", stack.context_bytes, "stack profile", visible=False),
        MemoryItem("cuBLAS workspaces", _HANDLES * workspace, f"{_HANDLES} x {workspace} B", visible=False),
        MemoryItem(
            "fragmentation",
            round(peak * stack.fragmented),
            f"{stack.fragmented:.1%} of the peak",
            visible=False,
        ),
    )
