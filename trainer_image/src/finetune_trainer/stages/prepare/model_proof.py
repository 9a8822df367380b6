"""What PREPARE makes of a trial of the model on small random weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.errors import Reason, StageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a trial found; None if the model passes.

    `packing` says why rows do not share passes, `training`, `merge` and `checkpointing` why the model cannot be tuned, and
    `untried` why a small model cannot run.
    """

    packing: str | None = None
    training: str | None = None
    merge: str | None = None
    checkpointing: str | None = None
    untried: str | None = None


Trial = Callable[[Path], Findings]
"""Tries the model whose config.json is in a folder. It runs the functions of TRAIN and MERGE, which PREPARE does not know."""


def no_trial(_folder: Path) -> Findings:
    """Try nothing, for callers without the functions of TRAIN and MERGE."""
    return Findings()


def require_provable(found: Findings) -> None:
    """Raise StageError(ModelUnprovable) with the layer if the model's merge or its gradients would be wrong.

    Rows that cannot share a pass are a warning, and so is a model that cannot be tried: TRAIN and MERGE then decide.
    """
    problem = found.training or found.merge or found.checkpointing
    if problem is not None:
        raise StageError(
            Reason.MODEL_UNPROVABLE,
            f"a small random model of this architecture must be trained and merged exactly: {problem}; choose another "
            "model, or report a bug with its config.json",
        )
    if found.packing is not None:
        _log.warning("TRAIN will pad the rows: %s", found.packing)
    if found.untried is not None:
        _log.warning("this architecture could not be tried on small random weights: %s", found.untried)
