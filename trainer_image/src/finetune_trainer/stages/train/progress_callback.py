"""What happens at each step of training: progress, and the check for finite numbers."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from finetune_trainer.contract.timestamps import utc_now
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.ranks.stragglers import Stragglers
from finetune_trainer.stages.train.step_clock import StepClock

if TYPE_CHECKING:
    from finetune_trainer.stages.train.loop import AdapterTrainer
    from finetune_trainer.stages.train.stop_request import StopRequest
    from finetune_trainer.telemetry.reporter import Reporter


class ProgressCallback(TrainerCallback):
    """Reports every step, and fails the run if the loss is not finite."""

    def __init__(self, progress: Reporter, stop: StopRequest) -> None:
        self.losses: list[float] = []
        self.trainer: AdapterTrainer | None = None
        self._progress = progress
        self.stop = stop
        self.tokens_per_second: float | None = None
        """Mean training tokens per second of this process, up to the last reported step; None before the first one."""
        self.clock = StepClock(time.monotonic)
        """The time of the steps; whatever interrupts the training pauses it."""
        self._tokens = 0
        self._steps = 0
        self._seconds = 0.0
        self._started = time.monotonic()
        self._begun = utc_now()
        self._stragglers = Stragglers()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._started = time.monotonic()
        self._begun = utc_now()
        self.clock.begin()
        self._progress.measure(checkpoint_time=self._begun)
        self._progress.update("Training", state.global_step, state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Tell the trainer that its state changes until the step has ended."""
        if self.trainer is not None:
            self.trainer.before_update()

    def on_log(
        self,
        args: Any,  # noqa: ARG002 -- the base class's signature
        state: Any,
        control: Any,  # noqa: ARG002 -- see above
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Check loss and gradient of a finished step before it can be saved, and report them.

        The state may be a step ahead of it.
        """
        logs = logs or {}
        if "loss" not in logs:
            return
        step = int(logs["step"])
        for name in ("loss", "grad_norm", "routerAuxLoss"):
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                raise StageError(
                    Reason.NON_FINITE_LOSS,
                    f"loss and gradient must be finite, found {name} {value} at step {step} of "
                    f"{state.max_steps}; lower training.learningRate and check the data. The last "
                    "checkpoint before it is kept",
                )
        self.losses.append(float(logs["loss"]))
        self._tokens += int(logs["tokens"])
        self._measure(logs.get("routerAuxLoss"))
        self.tokens_per_second = self._tokens / (time.monotonic() - self._started)
        self._progress.update(
            "Training",
            step,
            state.max_steps,
            loss=float(logs["loss"]),
            learning_rate=logs.get("learning_rate"),
            gradient_norm=logs.get("grad_norm"),
            tokens_per_second=self.tokens_per_second,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None,
        )

    def _measure(self, router_aux_loss: float | None) -> None:
        """Report the numbers of `TrainingMeasurements` that change with a step."""
        step_seconds = self.clock.end_step()
        self._steps += 1
        self._seconds += step_seconds
        written = None if self.trainer is None else self.trainer.checkpoint_time
        numbers: dict[str, Any] = {}
        ranks = () if self.trainer is None else self.trainer.gradients.rank_usage
        if ranks:
            seconds = tuple([each.seconds for each in ranks])
            numbers["rank_seconds"] = seconds
            numbers["rank_host_bytes"] = tuple([each.host_bytes for each in ranks])
            if any(each.device_bytes for each in ranks):
                numbers["rank_device_bytes"] = tuple([each.device_bytes for each in ranks])
            self._stragglers.add(seconds)
        if torch.cuda.is_initialized():
            numbers |= {
                "allocated_bytes": torch.cuda.memory_allocated(),
                "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
                "reserved_bytes": torch.cuda.memory_reserved(),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            }
        self._progress.measure(
            steps=self._steps,
            seconds=self._seconds,
            tokens=self._tokens,
            step_seconds=step_seconds,
            **({} if router_aux_loss is None else {"router_aux_loss": router_aux_loss}),
            checkpoint_time=written or self._begun,
            **numbers,
        )
