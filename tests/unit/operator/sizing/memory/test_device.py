"""Device memory that torch does not count."""

from __future__ import annotations

import pytest
from finetune_operator.sizing.gpus.gpu import Gpu, Version
from finetune_operator.sizing.memory.device import device_items
from finetune_operator.sizing.memory.stack import DEFAULT_STACK

MIB = 1 << 20


@pytest.mark.parametrize(
    ("capability", "workspaces"),
    [
        ((8, 0), 2 * 8.125 * MIB),
        ((8, 9), 2 * 8.125 * MIB),
        ((9, 0), 64 * MIB),
        ((12, 0), 64 * MIB),
        (None, 64 * MIB),
    ],
)
def test_cublas_has_a_workspace_for_each_of_two_threads(
    capability: Version | None, workspaces: float
) -> None:
    items = device_items(0, DEFAULT_STACK, Gpu("GPU", "Nvidia", 1, capability))
    assert {item.name: item.bytes for item in items}["cuBLAS workspaces"] == workspaces


def test_without_a_gpu_the_larger_workspace_is_assumed() -> None:
    assert device_items(0, DEFAULT_STACK, None) == device_items(
        0, DEFAULT_STACK, Gpu("GPU", "Nvidia", 1, (9, 0))
    )


def test_context_and_fragmentation_come_from_the_stack_profile() -> None:
    sizes = {item.name: item.bytes for item in device_items(1_000_000, DEFAULT_STACK, None)}
    assert sizes["CUDA context"] == 512 * MIB
    assert sizes["fragmentation"] == 30_000


def test_a_run_with_fake_tensors_sees_none_of_it() -> None:
    assert not any(item.visible for item in device_items(1, DEFAULT_STACK, None))
