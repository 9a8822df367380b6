"""Compares the traced memory of a model with a run of all its layers."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.trace.profile import Tracer
from finetune_trainer.trace.ways import Way

from tests.support.memory_oracle.fake_run import plan_spec, run_fake
from tests.support.memory_oracle.published import Published

TOO_MUCH, TOO_LITTLE = 1.03, 0.98
"""Bounds of a trace, as shares of the run's peak."""


@dataclass(frozen=True)
class Compared:
    """The peak of each phase in bytes by trace and by a run of all layers, and what the trace cost.

    `seconds` is processor time. `host_bytes` is the largest memory of the process when the trace ended.
    """

    traced: dict[str, int]
    run: dict[str, int]
    seconds: float
    host_bytes: int

    @property
    def share(self) -> float:
        """The traced peak as a share of that of the run."""
        return max(self.traced.values()) / max(self.run.values())

    @property
    def agrees(self) -> bool:
        """Whether the share is within the bounds."""
        return TOO_LITTLE <= self.share <= TOO_MUCH


def compare(model: Published) -> Compared:
    """Trace a model, and run all of its layers."""
    start = time.process_time()
    traced = trace_phases(model.document, model.plan, whole=model.whole)
    seconds = time.process_time() - start
    host_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Compared(traced, run_fake(model.document, model.plan).phases, seconds, host_bytes)


def trace_phases(document: dict[str, Any], plan: TrainingPlan, *, whole: bool = False) -> dict[str, int]:
    """Return the traced peak of each phase of a plan with the optimizer's states, in bytes."""
    tracer = Tracer(document, plan_spec(plan), whole=whole)
    accumulates = plan.gradient_accumulation > 1
    way = Way(
        plan.micro_batch_size, plan.sequence_length, accumulates, plan.gradient_checkpointing, plan.weights
    )
    with tracer.tracing():
        peaks, states = tracer.peaks(way, plan.optimizer), tracer.optimizer_states(plan.optimizer)
    return {
        "Load": peaks.load,
        "Loss": peaks.loss + states,
        "Recompute": peaks.recompute + states,
        "Optimizer": peaks.optimizer + states,
        "Evaluation": peaks.evaluation + states,
    }
