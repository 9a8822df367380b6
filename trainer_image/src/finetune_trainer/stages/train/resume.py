"""Trains from the checkpoint of a run, or from its begin, to its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from transformers import TrainerState

from finetune_trainer.stages.train.adapter import load_adapter_weights
from finetune_trainer.stages.train.checkpoint_files import STATE
from finetune_trainer.stages.train.early_stopping import history_of

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.stages.train.early_stopping import SelectionRule
    from finetune_trainer.stages.train.loop import AdapterTrainer
    from finetune_trainer.stages.train.selection import Selection

_log = logging.getLogger(__name__)


def run_steps(
    trainer: AdapterTrainer, checkpoint: tuple[int, Path] | None, steps: int, selection: Selection | None
) -> None:
    """Train up to `steps`, or until `selection` ends it, from `checkpoint` (its step and folder) if there is one."""
    if checkpoint is not None:
        step, folder = checkpoint
        _log.info("resuming from the checkpoint of step %d of %d", step, steps)
        state = None if selection is None else selection.restored(folder)
        if step >= steps or (selection is not None and state is not None and selection.ended(state)):
            load_adapter_weights(trainer.adapted, folder)
            trainer.state = state or type(trainer.state).load_from_json(str(folder / "trainer_state.json"))
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint[1]))
    ended = selection is not None and selection.ended(trainer.state)
    if trainer.state.global_step < steps and not ended:
        raise RuntimeError(f"training ended at step {trainer.state.global_step} of {steps}")


def is_finished(checkpoint: tuple[int, Path], steps: int, rule: SelectionRule | None) -> bool:
    """Return whether no step is left after `checkpoint` (its step and folder)."""
    step, folder = checkpoint
    if step >= steps or rule is None:
        return step >= steps
    return rule.ends(history_of(TrainerState.load_from_json(str(folder / STATE)).log_history))
