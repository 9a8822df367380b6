"""Small snapshots of a training state."""

from __future__ import annotations

import torch
from finetune_trainer.stages.train.random_states import random_states
from finetune_trainer.stages.train.snapshot import Snapshot
from transformers import TrainerState


def snapshot(step: int = 1, value: float = 0.5, size: int = 64) -> Snapshot:
    """Return the state after `step` of 10, with an adapter of `size` values and its AdamW states."""
    return Snapshot(
        step=step,
        adapter={
            "base_model.model.proj.lora_A.weight": torch.full((2, size // 4), value),
            "base_model.model.proj.lora_B.weight": torch.full((size // 4, 2), value, dtype=torch.bfloat16),
        },
        optimizer={
            "state": {
                0: {"step": torch.tensor(float(step)), "exp_avg": torch.full((size,), value)},
                1: {"state1": torch.ones(size, dtype=torch.uint8), "absmax1": torch.ones(4)},
            },
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
        },
        scheduler={"last_epoch": step, "_last_lr": [0.1]},
        randomness=random_states(),
        state=vars(TrainerState(global_step=step, max_steps=10, log_history=[{"loss": 1.5}])),
    )
