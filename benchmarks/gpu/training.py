"""The trainer's own loop on a workspace, with its steps timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.model.fused.policy import KernelChoice
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.loop import AdapterTrainer
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stage import _batching, _build_trainer, _kernels, _load
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import TrainerCallback


@dataclass
class Timing:
    """Tokens without padding and seconds of the measured steps, and the loss of the last one."""

    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    begun: float = field(default=0.0, repr=False)
    before: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Built:
    """A trainer with its passes and its kernels."""

    trainer: AdapterTrainer
    batching: Batching
    kernels: KernelChoice


class StepTimer(TrainerCallback):
    """Times all steps after the first `warm` ones. The device is waited for at the beginning and at the end only."""

    def __init__(self, device: str, warm: int) -> None:
        self.timing = Timing()
        self.tokens: Callable[[], Any] = int
        """Returns the tokens of all passes so far; set it before the training."""
        self._device = device
        self._warm = warm

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Start the clock after the warm steps."""
        if state.global_step == self._warm:
            synchronize(self._device)
            self.timing.before = int(self.tokens())
            self.timing.begun = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Stop the clock."""
        synchronize(self._device)
        self.timing.seconds = time.perf_counter() - self.timing.begun
        self.timing.tokens = int(self.tokens()) - self.timing.before
        losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
        self.timing.loss = losses[-1] if losses else float("nan")


def synchronize(device: str) -> None:
    """Wait until the device has done what was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def with_steps(run: RunSpec, steps: int) -> RunSpec:
    """Return the run with another number of steps."""
    return run.model_copy(update={"training": run.training.model_copy(update={"maximum_steps": steps})})


def build(run: RunSpec, layout: WorkspaceLayout, callbacks: tuple[Any, ...] = ()) -> Built:
    """Load the model, add the adapter and build the trainer, as TRAIN does it."""
    table = open_table(layout.training_table)
    loaded = _load(run, layout)
    batching = _batching(run, loaded.adapted, table.longest(), None)
    kernels = _kernels(run, loaded.adapted, None)
    steps = run.training.maximum_steps
    assert steps is not None
    watch = ProgressCallback(NullReporter(), StopRequest())
    trainer = _build_trainer(
        run, layout, loaded, training_dataset(table), batching, steps, watch, kernels=kernels
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    return Built(trainer, batching, kernels.choice)


@contextmanager
def cudnn_attention(device: str, *, enabled: bool) -> Iterator[None]:
    """Allow or forbid cuDNN's attention in the `with` statement; the trainer forbids it on a GPU."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled if device == "cuda" else before)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
