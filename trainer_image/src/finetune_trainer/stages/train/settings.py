"""From the run spec to the settings of peft and TRL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from peft import LoraConfig
from trl.trainer.sft_config import SFTConfig

from finetune_trainer.model.adapter_targets import adapted_modules

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from finetune_trainer.contract.run_spec import Lora, RunSpec, Training

_SCHEDULES = {"Cosine": "cosine", "Linear": "linear", "Constant": "constant_with_warmup"}


def planned_steps(examples: int, training: Training) -> int:
    """Optimiser steps of the whole run.

    An epoch ends with a step of its own even when its last batch is not full, as in transformers' Trainer.
    """
    if training.maximum_steps is not None:
        return training.maximum_steps
    micro_batches = math.ceil(examples / training.micro_batch_size)
    steps_per_epoch = math.ceil(micro_batches / training.gradient_accumulation_steps)
    return max(1, math.ceil((training.epochs or 0) * steps_per_epoch))


def lora_config(lora: Lora, quantized: Collection[str]) -> LoraConfig:
    """Adapter on every linear layer, or on those of the attention blocks; `quantized` names all of the model's.

    The output head is never adapted: it is not quantised, and may be tied to the embeddings.
    """
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules(lora.target_modules, quantized),
        use_rslora=lora.variant == "RankStabilized",
        use_dora=lora.variant == "DoRA",
        bias="none",
        task_type="CAUSAL_LM",
    )


def target_modules(kind: str, quantized: Collection[str]) -> list[str]:
    """Modules to adapt: their last name parts where these are unambiguous (q_proj), else their full names."""
    chosen = adapted_modules(kind, quantized)
    leaves = {name.rpartition(".")[2] for name in chosen}
    ambiguous = any(name.rpartition(".")[2] in leaves for name in set(quantized) - chosen)
    return sorted(chosen if ambiguous else leaves)


def sft_config(run: RunSpec, output: Path, steps: int) -> SFTConfig:
    """Return TRL's settings for `steps` optimiser steps; what TRL would change in the data is switched off."""
    training = run.training
    on_gpu = run.device == "cuda"
    return SFTConfig(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULES[training.schedule.type],
        warmup_steps=math.ceil(training.schedule.warmup_ratio * steps),
        optim=optimizer_name(run.device),
        max_length=None,
        packing=False,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        # The model already computes in one type (quantized.compute_dtype); autocast would add another.
        bf16=False,
        fp16=False,
        use_cpu=not on_gpu,
        seed=training.seed,
        save_strategy="steps",
        save_steps=training.checkpoint.interval_steps,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
        # Right for one device; the default would ask a process group.
        average_tokens_across_devices=False,
    )


def optimizer_name(device: str) -> str:
    """Name transformers' optimiser for a device.

    Paged 8-bit states move to host memory in a spike instead of ending the run; CPUs have no such pages.
    """
    return "paged_adamw_8bit" if device == "cuda" else "adamw_torch"
