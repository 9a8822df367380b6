"""Measurement 5: a real out-of-memory error of the device, and the rungs that TRAIN takes after it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.stages.train.ladder import this_device
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter

from benchmarks.gpu.context import Context
from benchmarks.gpu.older_torch import adapt
from benchmarks.gpu.shapes import Rows
from benchmarks.gpu.weights import quantized_weights
from benchmarks.gpu.workspaces import make_run, make_workspace
from tests.support.small_gpu import SmallGpu

_TOO_MUCH = 1.4
"""Estimate of the first rung, as a multiple of the device's memory."""
_DRY_ROWS = 4
_STEPS = 2


def run(case: str, context: Context) -> dict[str, Any]:
    """Train with a first rung that cannot fit, and a second one that takes an eighth with gradient checkpointing."""
    assert case == "ladder"
    adapt()
    name = context.size.running
    config = context.size.configs[name]
    length = context.size.running_length
    weights = quantized_weights(name, config, context.scratch, context.device)
    total = this_device(context.device).bytes
    rows, estimated = rows_that_do_not_fit(config, length, total)
    second = max(1, rows // 8)
    layout = make_workspace(
        context.scratch / "ladder", weights, [length] * rows * _STEPS, held_out=[length] * 2
    )
    spec = make_run(
        layout,
        context.device,
        Rows(length, rows, rows),
        _STEPS,
        gradientCheckpointing=False,
        ladder=[{"microBatchSize": second, "gradientCheckpointing": True}],
    )
    # Without a GPU, torch's operators raise its out-of-memory error for a pass of all rows.
    full = (
        nullcontext()
        if context.device == "cuda"
        else SmallGpu(lambda made: made.shape[0] * made.shape[1] >= rows * length)
    )
    started = time.perf_counter()
    with full:
        result = train(spec, NullReporter())
    failed = [rung.document() for rung in result.failed_rungs or ()]
    assert failed, f"the first rung must not fit, found that {rows} rows of {length} tokens do"
    return {
        "model": name,
        "deviceBytes": total,
        "estimatedBytes": estimated,
        "failedRungs": failed,
        "rung": None if result.rung is None else result.rung.document(),
        "steps": result.steps,
        "seconds": time.perf_counter() - started,
    }


def rows_that_do_not_fit(config: dict[str, Any], length: int, total: int) -> tuple[int, int]:
    """Return a power of two of rows whose estimate exceeds the device's `total` bytes by far, and the estimate.

    Without a device, four rows.
    """
    rows = _DRY_ROWS
    while True:
        plan = TrainingPlan(length, micro_batch_size=rows, gradient_checkpointing=False)
        estimated = estimate(model_shape(config), plan, DEFAULT_STACK).device_bytes
        if estimated >= _TOO_MUCH * total:
            return rows, estimated
        rows *= 2
