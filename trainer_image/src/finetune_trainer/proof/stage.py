"""PREPARE with a trial of the model before its weights are fetched."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from finetune_trainer.model.text_part import find_text_part
from finetune_trainer.stages.prepare import stage
from finetune_trainer.stages.prepare.model_proof import Findings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune_trainer.contract.result import StageResult
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.telemetry.reporter import Reporter

_LONGEST = 500


def prepare(run: RunSpec, progress: Reporter) -> StageResult:
    """Do as `stages.prepare.stage.prepare` does, with the trial."""
    return stage.prepare(run, progress, trial)


def trial(folder: Path) -> Findings:
    """Try the model whose config.json is in `folder`. A small model that cannot run proves nothing."""
    from finetune_trainer.proof.canaries import try_model  # noqa: PLC0415 -- TRAIN's code imports torch's compiler

    # The log must not hold progress bars.
    disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # Libraries warn about matters of a small model alone.
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            found = _tried(lambda: try_model(config))
            part = find_text_part(config) if found.untried is not None else None
            # Towers have sizes of many kinds. If a small whole model cannot run, its text part alone may.
            return found if part is None else _tried(lambda: try_model(part.config))
    except Exception as error:  # noqa: BLE001 -- any code of transformers runs here
        return _untried(error)


def _tried(trial: Callable[[], Findings]) -> Findings:
    try:
        return trial()
    except Exception as error:  # noqa: BLE001 -- same
        return _untried(error)


def _untried(error: Exception) -> Findings:
    return Findings(untried=f"{type(error).__name__}: {error}"[:_LONGEST])
