"""Measurement 3: the peaks of each phase of a training step, beside the estimate that the operator makes before it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.model.load import load_quantized
from finetune_trainer.stages.train import memory, stage
from finetune_trainer.stages.train.dataset import open_table
from transformers import TrainerCallback

from benchmarks.gpu import training
from benchmarks.gpu.calibration import static_bytes
from benchmarks.gpu.context import Context
from benchmarks.gpu.older_torch import adapt
from benchmarks.gpu.shapes import MemoryRun, Rows
from benchmarks.gpu.weights import quantized_weights
from benchmarks.gpu.workspaces import lora, make_run, make_workspace

_PASSES = 2
_STEPS = 2
"""The optimizer's states exist from the first step on, so the second one has the peak."""


def run(case: str, context: Context) -> dict[str, Any]:
    """Measure one configuration."""
    adapt()
    chosen = next(each for each in context.size.memory if each.name == case)
    memory.release()
    return measure(chosen, context)


@dataclass
class Peaks:
    """The most bytes that tensors took in each phase, and the most that the allocator held in all."""

    device: str

    def __post_init__(self) -> None:
        self.allocated: dict[str, int] = {}
        self.reserved = 0
        self.outside = 0
        self.begin()

    def begin(self) -> None:
        """Forget the peaks so far."""
        memory.reset_peaks()

    def end(self, phase: str) -> None:
        """Add the peaks since `begin` to those of `phase`, and begin again."""
        allocated, reserved, outside = self._read()
        self.allocated[phase] = max(self.allocated.get(phase, 0), allocated)
        self.reserved = max(self.reserved, reserved)
        self.outside = max(self.outside, outside)
        self.begin()

    def _read(self) -> tuple[int, int, int]:
        found = memory.read()
        if found is None:
            # In a dry run the memory of the process stands in for that of a GPU.
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            held = pages * os.sysconf("SC_PAGE_SIZE")
            return held, held, 0
        return found.allocated_peak, found.reserved_peak, found.outside


class PhaseCallback(TrainerCallback):
    """Reads the peaks of the backward pass and of the optimizer."""

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = peaks

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """End the last backward pass of the step."""
        self._peaks.end("Recompute")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """End the optimizer's work."""
        self._peaks.end("Optimizer")


def watch_loss(trainer: Any, peaks: Peaks) -> None:
    """Let each forward pass of `trainer` end the backward pass before it, and read its own peak."""
    compute: Callable[..., Any] = trainer.compute_loss

    def compute_loss(*arguments: Any, **settings: Any) -> Any:
        peaks.end("Recompute")
        loss = compute(*arguments, **settings)
        peaks.end("Loss")
        return loss

    trainer.compute_loss = compute_loss


def measure(chosen: MemoryRun, context: Context) -> dict[str, Any]:
    """Load, train two steps and evaluate; return measured and estimated bytes by phase."""
    config = context.size.configs[chosen.model]
    weights = quantized_weights(chosen.model, config, context.scratch, context.device)
    # The weights may have been made in this process.
    memory.release()
    rows = Rows(chosen.length, chosen.rows * _PASSES, chosen.rows)
    layout = make_workspace(
        context.scratch / "memory",
        weights,
        [chosen.length] * rows.per_step * _STEPS,
        [chosen.length] * chosen.rows,
    )
    spec = make_run(
        layout,
        context.device,
        rows,
        _STEPS,
        gradientCheckpointing=chosen.checkpointing,
        optimizer="AdamW",
        lora=lora(chosen.rank, chosen.targets),
        packing="Auto" if chosen.packed else "Never",
    )
    peaks = Peaks(context.device)

    def load_and_read(*arguments: Any, **settings: Any) -> Any:
        model = load_quantized(*arguments, **settings)
        peaks.end("Load")
        return model

    with patch.object(stage, "load_quantized", load_and_read):
        built = training.build(spec, layout, (PhaseCallback(peaks),))
    trainer, batching = built.trainer, built.batching
    peaks.end("Prepare")
    watch_loss(trainer, peaks)
    trainer.train()
    peaks.begin()
    held_out = open_table(layout.validation_table).first(chosen.rows)
    trainer.adapted.eval()
    row_losses(trainer.adapted, held_out, chosen.rows * chosen.length, lambda _done, _total: None)
    peaks.end("Evaluation")
    plan = TrainingPlan(
        chosen.length,
        micro_batch_size=chosen.rows,
        gradient_accumulation=_PASSES,
        gradient_checkpointing=chosen.checkpointing,
        rank=chosen.rank,
        target_modules=chosen.targets,
        optimizer="AdamW",
    )
    estimated = estimate(model_shape(config), plan, DEFAULT_STACK)
    return {
        "model": chosen.model,
        "plan": {"rows": chosen.rows, "length": chosen.length, "rank": chosen.rank},
        "batching": batching.kind,
        "reason": batching.reason,
        "stack": estimated.stack,
        "phases": {
            name: {"measured": found, "estimated": estimated.phases[Phase(name)]}
            for name, found in peaks.allocated.items()
        },
        "estimatedPeakBytes": estimated.peak_bytes,
        "estimatedStaticBytes": static_bytes(estimated),
        "estimatedDeviceBytes": estimated.device_bytes,
        "allocatedBytes": max(peaks.allocated.values()),
        "reservedBytes": peaks.reserved,
        "deviceBytes": peaks.reserved + peaks.outside,
    }
