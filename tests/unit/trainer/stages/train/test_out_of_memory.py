"""A GPU that is out of memory is one reason with the measured peaks, whatever torch raised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train import memory, stage
from finetune_trainer.stages.train.memory import Reading
from finetune_trainer.stages.train.out_of_memory import describe_cause, gpu_out_of_memory
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter

from tests.support.workspaces import run_spec

_GIB = 1 << 30
_FULL = Reading(
    allocated_peak=10 * _GIB, reserved_peak=12 * _GIB, reserved=11 * _GIB, free=11 * _GIB, total=24 * _GIB
)
_CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_the_failure_has_the_planned_and_measured_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "read", lambda: _FULL)
    run = run_spec(tmp_path, tmp_path, microBatchSize=2, gradientCheckpointing=True)
    error = gpu_out_of_memory(run, _CUBLAS)
    assert error.reason is Reason.GPU_OUT_OF_MEMORY
    assert "micro-batches of 2 sequences of up to 128 tokens, with gradient checkpointing" in error.message
    assert "The GPU has 24.00 GiB. Tensors took at most 10.00 GiB" in error.message
    assert "held at most 12.00 GiB" in error.message
    assert "others took 2.00 GiB" in error.message
    assert "Found: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED" in error.message


def test_a_long_cause_is_one_short_line() -> None:
    assert describe_cause(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert describe_cause(torch.OutOfMemoryError()) == "OutOfMemoryError"
    assert len(describe_cause(RuntimeError("x" * 1000))) == 160


def test_the_stage_ends_with_the_reason_and_other_errors_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_spec(tmp_path, tmp_path)

    def failing(error: Exception) -> None:
        def fail(*_arguments: object, **_settings: object) -> None:
            raise error

        monkeypatch.setattr(stage, "_train", fail)

    failing(_CUBLAS)
    with pytest.raises(StageError) as caught:
        train(run, NullReporter())
    assert caught.value.reason is Reason.GPU_OUT_OF_MEMORY
    assert caught.value.__cause__ is _CUBLAS
    failing(ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError):
        train(run, NullReporter())
