"""SFTTrainer with the loss of proven labels, verified checkpoints and exact resume."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.stages.train.checkpoints import publish_checkpoint
from finetune_trainer.stages.train.loss import negative_log_likelihood, supervised_positions
from finetune_trainer.stages.train.master_weights import kept_values

_log = logging.getLogger(__name__)
_ADAPTER_FILE = "adapter_model.safetensors"


class AdapterTrainer(SFTTrainer):
    """Trains the adapter of a quantized model on proven labels.

    `checkpoints` is the folder of the saved states; `tokens` counts this process's training tokens without padding.
    """

    def __init__(self, *arguments: Any, checkpoints: Path, **settings: Any) -> None:
        # TRL rounds the adapter of every quantized model to bf16.
        with kept_values(settings["model"]):
            super().__init__(*arguments, **settings)
        self.checkpoints = checkpoints
        self.tokens = 0
        self.remove_callback(PrinterCallback)
        # The tokenizer was needed only for the padding token. If it stayed, it would be written into every
        # checkpoint, and transformers would change the model's special tokens to match it.
        self.processing_class = None
        # Every loss is divided by the learned tokens of its whole step, whatever the signature of the model's forward
        # pass. So micro-batches of any size give the same sum.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True

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
