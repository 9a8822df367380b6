"""Plain transformers, peft and TRL on the same 4-bit checkpoint, rows and adapter, with and without Liger kernels."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from finetune_trainer.contract.run_spec import RunSpec, Training
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.settings import lora_config
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.gpu.context import AbsentError
from benchmarks.gpu.training import StepTimer, Timing


@dataclass(frozen=True)
class Measured:
    """The timing of a peer, its optimizer, and what a reader of its number must know."""

    timing: Timing
    optimizer: str
    notes: tuple[str, ...]


class CountingTrainer(SFTTrainer):
    """TRL's trainer; `seen` counts tokens without padding on the device, so that counting waits for nothing."""

    seen: torch.Tensor | None = None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Count the tokens, and train as the base class does."""
        mask = inputs.get("attention_mask")
        ids = inputs["input_ids"]
        count = mask.sum() if mask is not None else torch.tensor(ids.numel(), device=ids.device)
        self.seen = count if self.seen is None else self.seen + count
        step: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[no-untyped-call]  # TRL has no annotations here
        return step


def train(
    run: RunSpec, layout: WorkspaceLayout, *, steps: int, warm: int, packed: bool, liger: bool
) -> Measured:
    """Train `steps` steps and time those after the first `warm` ones.

    Raises AbsentError without Liger's package, and without a GPU for its kernels.
    """
    if liger and importlib.util.find_spec("liger_kernel") is None:
        raise AbsentError("liger-kernel must be installed, found none")
    if liger and run.device != "cuda":
        raise AbsentError("Liger's kernels need a GPU, found none")
    on_gpu = run.device == "cuda"
    model = AutoModelForCausalLM.from_pretrained(
        layout.quantized_model,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        device_map={"": 0 if on_gpu else "cpu"},
        local_files_only=True,
    )
    table = open_table(layout.training_table)
    rows = run.training
    # TRL packs up to the longest row; as many tokens share a pass and a step as in the trainer.
    settings = SFTConfig(
        output_dir=str(layout.root / "peer"),
        max_steps=steps,
        per_device_train_batch_size=rows.micro_batch_size,
        gradient_accumulation_steps=_accumulation(rows, table.lengths().tolist(), packed=packed),
        learning_rate=rows.learning_rate,
        max_length=table.longest() if packed else None,
        packing=packed,
        gradient_checkpointing=rows.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if rows.gradient_checkpointing else None,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        use_liger_kernel=liger,
        save_strategy="no",
        logging_steps=steps,
        report_to="none",
        disable_tqdm=True,
        dataset_num_proc=None,
    )
    timer = StepTimer(str(run.device), warm)
    with warnings.catch_warnings():
        # TRL warns that this way of using Liger will go.
        warnings.simplefilter("ignore")
        trainer = CountingTrainer(
            model=model,
            args=settings,
            train_dataset=training_dataset(table),
            processing_class=AutoTokenizer.from_pretrained(layout.base, local_files_only=True),
            peft_config=lora_config(rows.lora, read_base_layout(layout).quantized),
            callbacks=[timer],
        )
        timer.tokens = lambda: 0 if trainer.seen is None else trainer.seen
        trainer.train()
    notes = [f"attention {model.config._attn_implementation}"]  # noqa: SLF001 -- transformers keeps it there
    if packed:
        notes.append("rows of a pack see each other, unless the attention is flash attention")
    return Measured(timer.timing, str(getattr(settings.optim, "value", settings.optim)), tuple(notes))


def _accumulation(rows: Training, lengths: list[int], *, packed: bool) -> int:
    """Return the passes of a step, so that a step has about the tokens of one of the trainer."""
    if not packed:
        return rows.gradient_accumulation_steps
    tokens = sum(lengths) / len(lengths) * rows.effective_batch_size
    return max(1, round(tokens / (max(lengths) * rows.micro_batch_size)))
