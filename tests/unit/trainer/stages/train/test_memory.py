"""The result's `memory` follows from torch's counters. Only reading the counters needs a GPU."""

from __future__ import annotations

import pytest
import torch
from finetune_trainer.contract.train_result import MemoryResult
from finetune_trainer.stages.train import memory
from finetune_trainer.stages.train.memory import Reading, describe_full, measured

_GIB = 1 << 30
_LOADED = Reading(
    allocated_peak=4 * _GIB, reserved_peak=5 * _GIB, reserved=4 * _GIB, free=19 * _GIB, total=24 * _GIB
)
_ENDED = Reading(
    allocated_peak=10 * _GIB, reserved_peak=12 * _GIB, reserved=11 * _GIB, free=11 * _GIB, total=24 * _GIB
)


def test_a_cpu_has_no_peaks() -> None:
    assert measured(None, None) is None
    assert not torch.cuda.is_initialized()
    assert memory.read() is None


def test_the_device_peak_is_the_allocator_peak_plus_the_largest_use_outside() -> None:
    """Two GiB are outside of the allocator at the end, and one GiB after loading."""
    assert measured(_LOADED, _ENDED) == MemoryResult(
        allocated_bytes=10 * _GIB,
        reserved_bytes=12 * _GIB,
        device_bytes=14 * _GIB,
        usable_bytes=24 * _GIB,
        load_bytes=4 * _GIB,
    )


def test_the_device_peak_never_exceeds_the_memory_of_the_device() -> None:
    crowded = Reading(20 * _GIB, 23 * _GIB, 10 * _GIB, 10 * _GIB, 24 * _GIB)
    found = measured(None, crowded)
    assert found is not None
    assert found.device_bytes == 24 * _GIB
    assert "loadBytes" not in found.document()


def test_the_content_of_a_full_gpu_is_described() -> None:
    text = describe_full(_ENDED)
    assert (
        "The GPU has 24.00 GiB. Tensors took at most 10.00 GiB, and the allocator held at most 12.00 GiB"
        in text
    )
    assert text.endswith("Context and others took 2.00 GiB")
    assert "before it could be measured" in describe_full(None)


def test_a_gpu_that_fails_every_call_still_has_the_peaks_of_the_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After some errors every CUDA call fails, but torch's counters are in host memory."""

    def broken() -> tuple[int, int]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    for name, size in [("max_memory_allocated", 10), ("max_memory_reserved", 12), ("memory_reserved", 11)]:
        monkeypatch.setattr(torch.cuda, name, lambda size=size: size * _GIB)
    reading = memory.read()
    assert reading == Reading(10 * _GIB, 12 * _GIB, 11 * _GIB, None, None)
    assert reading.outside == 0
    assert describe_full(reading) == (
        "Tensors took at most 10.00 GiB, and the allocator held at most 12.00 GiB; the GPU itself does not answer"
    )
    assert measured(None, reading) is None


@pytest.mark.gpu
def test_peaks_are_read_from_the_gpu() -> None:
    block = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    reading = memory.read()
    assert reading is not None
    assert reading.total is not None
    assert reading.total >= reading.reserved_peak >= reading.allocated_peak >= block.nbytes
