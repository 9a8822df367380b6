"""TRL's trainer with sealed checkpoints, an exact resume, and eyes for NaN, progress and a request to stop."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.adapter import settle_adapter
from finetune_trainer.stages.train.checkpoints import publish_checkpoint
from finetune_trainer.stages.train.loss import negative_log_likelihood, supervised_places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)
_ADAPTER_FILE = "adapter_model.safetensors"


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a quantised model on proven labels.

    `checkpoints` receives the checkpoints; `tokens` counts the tokens seen by this process, padding excluded.
    """

    def __init__(self, *arguments: Any, checkpoints: Path, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.checkpoints = checkpoints
        self.tokens = 0
        self.remove_callback(PrinterCallback)
        # The tokenizer has done its part (the padding token). Kept here, it would be written into every
        # checkpoint, and transformers would change the model's special tokens to match it.
        self.processing_class = None
        # TRL makes the adapter of every quantised model bf16, which a CPU multiplies ten times slower.
        settle_adapter(self.adapted, self.adapted.dtype)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 -- the base class's signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of the negative log-likelihood over supervised tokens, divided by their number in the whole step.

        The same value as TRL's, on every device, without its measures of entropy and accuracy.
        """
        if return_outputs:
            raise NotImplementedError("logits of a whole batch are never held; measure with `scoring`")
        self.tokens += int(inputs["attention_mask"].sum())
        places, targets = supervised_places(inputs["labels"])
        total = negative_log_likelihood(model, inputs["input_ids"], places, targets)
        count = len(places) if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count, device=total.device).clamp(min=1)

    @property
    def adapted(self) -> Any:
        """The model with its adapter."""
        return self.model

    def create_model_card(self, *_arguments: Any, **_settings: Any) -> None:
        """Write none: MERGE writes the card of what is published."""

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002 -- the base class's signature
        return str(self._writing)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write aside, seal, then move into place: a crash leaves no checkpoint that looks whole."""
        shutil.rmtree(self._writing, ignore_errors=True)
        self._writing.mkdir(parents=True)
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]  # trl has no annotations
        folder = publish_checkpoint(self._writing / f"checkpoint-{self.state.global_step}", self.checkpoints)
        _log.info("checkpoint of step %d written", self.state.global_step)
        shutil.rmtree(self._writing)
        self.last_checkpoint = folder

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Put the adapter's values back in place; peft's own loading would change their type."""
        load_adapter_weights(self.adapted if model is None else model, Path(resume_from_checkpoint))

    @property
    def _writing(self) -> Path:
        return self.checkpoints.with_name(f"{self.checkpoints.name}.partial")


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Load the adapter in `folder` into a model that has one of the same shape."""
    weights = load_file(folder / _ADAPTER_FILE)
    outcome: Any = set_peft_model_state_dict(model, weights)
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if missing or outcome.unexpected_keys:
        raise RuntimeError(
            f"a checkpoint's adapter must fit the model, found {len(missing)} missing and "
            f"{len(outcome.unexpected_keys)} unexpected tensors in {folder.name}"
        )


class StopRequest:
    """Remembers that the process was asked to stop, until a step's end can act on it."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests; the handlers before come back afterwards."""

        def remember(number: int, _frame: FrameType | None) -> None:
            _log.warning(
                "%s received: saving a checkpoint at the end of this step", signal.Signals(number).name
            )
            self.received = True

        before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Watch(TrainerCallback):
    """Reports every step, ends the run at a loss that is no number, and stops it when asked to."""

    def __init__(self, progress: Reporter, stop: StopRequest) -> None:
        self.losses: list[float] = []
        self.trainer: AdapterTrainer | None = None
        self._progress = progress
        self._stop = stop
        self._started = time.monotonic()

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens trained on per second by this process so far; None before the first step."""
        if self.trainer is None or not self.losses:
            return None
        return self.trainer.tokens / (time.monotonic() - self._started)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._started = time.monotonic()
        self._progress.update("Training", state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Ask for a checkpoint and the end when the process must stop."""
        self._obey(control)

    def on_log(
        self,
        args: Any,  # noqa: ARG002 -- the base class's signature
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Look at the loss and gradient of the step that just ended, before it can be saved."""
        logs = logs or {}
        if "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                raise StageError(
                    Reason.NON_FINITE_LOSS,
                    f"loss and gradient must be finite, found {name} {value} at step {state.global_step} of "
                    f"{state.max_steps}; lower training.learningRate and look at the data",
                )
        self.losses.append(float(logs["loss"]))
        self._progress.update(
            "Training",
            state.global_step,
            state.max_steps,
            loss=float(logs["loss"]),
            learning_rate=logs.get("learning_rate"),
            tokens_per_second=self.tokens_per_second,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None,
        )
        # Between a step's end and its saving: a request that came meanwhile need not wait for another step.
        self._obey(control)

    def _obey(self, control: Any) -> None:
        if self._stop.received:
            control.should_save = True
            control.should_training_stop = True
