"""SFTTrainer with verified checkpoints, exact resume, NaN detection, progress reporting and graceful stop."""

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
from finetune_trainer.stages.train.adapter import cast_adapter
from finetune_trainer.stages.train.checkpoints import publish_checkpoint
from finetune_trainer.stages.train.loss import negative_log_likelihood, supervised_positions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)
_ADAPTER_FILE = "adapter_model.safetensors"


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a quantized model on proven labels.

    `checkpoints` is the folder of the saved states; `tokens` counts this process's training tokens without padding.
    """

    def __init__(self, *arguments: Any, checkpoints: Path, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.checkpoints = checkpoints
        self.tokens = 0
        self.remove_callback(PrinterCallback)
        # The tokenizer was needed only for the padding token. If it stayed, it would be written into every
        # checkpoint, and transformers would change the model's special tokens to match it.
        self.processing_class = None
        # TRL makes the adapter of every quantized model bf16, which a CPU multiplies ten times slower.
        cast_adapter(self.adapted, self.adapted.dtype)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 -- the base class's signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the sum of -ln p over supervised tokens, divided by their number in the whole step.

        The value equals TRL's on every device. TRL's entropy and accuracy are not computed.
        """
        if return_outputs:
            raise NotImplementedError("logits of a whole batch are never held; measure with `scoring`")
        self.tokens += int(inputs["attention_mask"].sum())
        positions, targets = supervised_positions(inputs["labels"])
        total = negative_log_likelihood(model, inputs["input_ids"], positions, targets)
        count = len(positions) if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count, device=total.device).clamp(min=1)

    @property
    def adapted(self) -> Any:
        """The model with its adapter."""
        return self.model

    def create_model_card(self, *_arguments: Any, **_settings: Any) -> None:
        """Write no card: MERGE writes the cards of published artifacts."""

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002 -- the base class's signature
        return str(self._writing)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write to another folder, seal, then rename: a crash leaves no checkpoint that looks complete."""
        shutil.rmtree(self._writing, ignore_errors=True)
        self._writing.mkdir(parents=True)
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]  # trl has no annotations
        folder = publish_checkpoint(self._writing / f"checkpoint-{self.state.global_step}", self.checkpoints)
        _log.info("checkpoint of step %d written", self.state.global_step)
        shutil.rmtree(self._writing)
        self.last_checkpoint = folder

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapter's values into the model; peft's own loading would change their type."""
        load_adapter_weights(self.adapted if model is None else model, Path(resume_from_checkpoint))

    @property
    def _writing(self) -> Path:
        return self.checkpoints.with_name(f"{self.checkpoints.name}.partial")


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Load the adapter in `folder` into a model that has an adapter of the same shape.

    Raises RuntimeError if a tensor is missing or unexpected.
    """
    weights = load_file(folder / _ADAPTER_FILE)
    outcome: Any = set_peft_model_state_dict(model, weights)
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if missing or outcome.unexpected_keys:
        raise RuntimeError(
            f"a checkpoint's adapter must fit the model, found {len(missing)} missing and "
            f"{len(outcome.unexpected_keys)} unexpected tensors in {folder.name}"
        )


class StopRequest:
    """Remembers a request to stop until the end of the training step."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests; restore the earlier handlers afterwards."""

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


class ProgressCallback(TrainerCallback):
    """Reports every step, fails the run if the loss is not finite, and stops the run on request."""

    def __init__(self, progress: Reporter, stop: StopRequest) -> None:
        self.losses: list[float] = []
        self.trainer: AdapterTrainer | None = None
        self._progress = progress
        self._stop = stop
        self._started = time.monotonic()

    @property
    def tokens_per_second(self) -> float | None:
        """Mean training tokens per second of this process; None before the first step."""
        if self.trainer is None or not self.losses:
            return None
        return self.trainer.tokens / (time.monotonic() - self._started)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._started = time.monotonic()
        self._progress.update("Training", state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Ask for a checkpoint and the end of training if the process must stop."""
        self._stop_if_asked(control)

    def on_log(
        self,
        args: Any,  # noqa: ARG002 -- the base class's signature
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Check loss and gradient of the finished step before it can be saved, and report them."""
        logs = logs or {}
        if "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                raise StageError(
                    Reason.NON_FINITE_LOSS,
                    f"loss and gradient must be finite, found {name} {value} at step {state.global_step} of "
                    f"{state.max_steps}; lower training.learningRate and check the data",
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
        # A request that arrived since the step's end need not wait for another step.
        self._stop_if_asked(control)

    def _stop_if_asked(self, control: Any) -> None:
        if self._stop.received:
            control.should_save = True
            control.should_training_stop = True
