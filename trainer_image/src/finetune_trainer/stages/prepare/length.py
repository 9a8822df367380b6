"""Compares training.maximumLength with the positions that the model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from finetune_trainer.model.describe import BaseModel


def require_length(maximum_length: int, base: BaseModel) -> None:
    """Raise StageError(LengthNotSupported) if a row of `maximum_length` tokens would have tokens without a position."""
    if base.positions is not None and maximum_length > base.positions:
        raise StageError(
            Reason.LENGTH_NOT_SUPPORTED,
            f"training.maximumLength must be at most the {base.positions} positions that {base.architecture} has, found "
            f"{maximum_length}; create the job again with training.maximumLength: {base.positions} or less",
        )
