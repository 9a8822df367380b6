"""The result's `memory` follows from torch's counters. Only reading the counters needs a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.contract.result import MemoryResult
from finetune_trainer.errors import Reason
from finetune_trainer.stages.train import memory
from finetune_trainer.stages.train.memory import Reading, describe_full, measured
from finetune_trainer.stages.train.stage import _out_of_memory

from tests.support.workspaces import run_spec

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


def test_an_out_of_memory_error_has_the_planned_and_measured_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "read", lambda: _ENDED)
    error = _out_of_memory(run_spec(tmp_path, tmp_path, microBatchSize=2, gradientCheckpointing=True))
    assert error.reason is Reason.GPU_OUT_OF_MEMORY
    assert "micro-batches of 2 sequences of up to 128 tokens, with gradient checkpointing" in error.message
    assert "The GPU has 24.00 GiB. Tensors took at most 10.00 GiB" in error.message
    assert "held 12.00 GiB" in error.message
    assert "others took 2.00 GiB" in error.message
    assert "before it could be measured" in describe_full(None)


@pytest.mark.gpu
def test_peaks_are_read_from_the_gpu() -> None:
    block = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    reading = memory.read()
    assert reading is not None
    assert reading.total >= reading.reserved_peak >= reading.allocated_peak >= block.nbytes
