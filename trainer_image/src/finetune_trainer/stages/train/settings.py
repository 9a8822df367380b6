"""The settings of peft and TRL for a run spec."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from peft import LoraConfig

from finetune_trainer.contract.run_spec import DEFAULT_OPTIMIZER, Optimizer
from finetune_trainer.model.adapter_targets import adapted_modules

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from trl.trainer.sft_config import SFTConfig

    from finetune_trainer.contract.run_spec import Lora, RunSpec, Training

_OPTIMIZERS: dict[Optimizer, str] = {
    # All tensors in a few kernels, without a wait for the device.
    "AdamW": "adamw_torch_fused",
    "AdamW8Bit": "adamw_8bit",
    # In a spike the states move to host memory, so that the run does not fail.
    "PagedAdamW8Bit": "paged_adamw_8bit",
}
_SCHEDULES = {"Cosine": "cosine", "Linear": "linear", "Constant": "constant_with_warmup"}


def planned_steps(examples: int, training: Training) -> int:
    """Return the optimizer steps of the whole run.

    As in transformers' Trainer, the last batch of an epoch gets its step even if it is not full.
    """
    if training.maximum_steps is not None:
        return training.maximum_steps
    steps_per_epoch = math.ceil(examples / training.effective_batch_size)
    return max(1, math.ceil((training.epochs or 0) * steps_per_epoch))


def lora_config(lora: Lora, quantized: Collection[str], others: Collection[str] = ()) -> LoraConfig:
    """Return peft's settings: LoRA on every linear layer, or only on those of the attention blocks.

    `quantized` names all quantized layers, and `others` modules that peft must not take for them. The output head never gets
    an adapter: it is not quantized, and it may be tied to the embeddings.
    """
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules(lora.target_modules, quantized, others),
        use_rslora=lora.variant == "RankStabilized",
        use_dora=lora.variant == "DoRA",
        bias="none",
        task_type="CAUSAL_LM",
    )


def target_modules(kind: str, quantized: Collection[str], others: Collection[str] = ()) -> list[str]:
    """Return the modules to adapt: the last parts of their names (q_proj) if unambiguous, else their full names."""
    chosen = adapted_modules(kind, quantized)
    leaves = {name.rpartition(".")[2] for name in chosen}
    unchosen = (set(quantized) - chosen) | set(others)
    # An item of a list has its number as its name, and so has a layer.
    ambiguous = any(name.rpartition(".")[2] in leaves for name in unchosen) or any(map(str.isdigit, leaves))
    return sorted(chosen if ambiguous else leaves)


def sft_config(run: RunSpec, output: Path, steps: int) -> SFTConfig:
    """Return TRL's settings for `steps` optimizer steps. TRL's own changes to the data are switched off."""
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415 -- it takes seconds, and PREPARE's trial needs only LoRA

    training = run.training
    on_gpu = run.device == "cuda"
    return SFTConfig(
        output_dir=str(output),
        max_steps=steps,
        # A batch of the loader is a whole step, and `stages.train.passes` splits it.
        per_device_train_batch_size=training.effective_batch_size,
        gradient_accumulation_steps=1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULES[training.schedule.type],
        warmup_steps=math.ceil(training.schedule.warmup_ratio * steps),
        optim=optimizer_name(run),
        weight_decay=training.weight_decay,
        # 0 is no limit for transformers, too.
        max_grad_norm=training.maximum_gradient_norm,
        neftune_noise_alpha=training.neftune_noise_alpha or None,
        max_length=None,
        packing=False,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        # The model already computes in one type (`model.load.compute_dtype`); autocast would add another.
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
        # Correct for one device; the default would need a process group.
        average_tokens_across_devices=False,
    )


def optimizer_name(run: RunSpec) -> str:
    """Return transformers' name of the optimizer of a run.

    A CPU always has AdamW, and not torch's fused one, whose last bits differ there.
    """
    if run.device == "cpu":
        return "adamw_torch"
    return _OPTIMIZERS[run.training.optimizer or DEFAULT_OPTIMIZER]
