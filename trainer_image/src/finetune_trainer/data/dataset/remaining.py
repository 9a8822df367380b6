"""Decides if enough examples remain to train and to validate, and says where the others went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from finetune_trainer.data.dataset.counts import DatasetReport


def require_examples(
    training: int, validation: int, training_rows: DatasetReport, validation_rows: DatasetReport | None
) -> None:
    """Raise StageError(InvalidDataset) if no example is left to train or to validate; the numbers are of examples.

    `validation_rows` is None if a fraction of the training dataset is held out.
    """
    if training and validation:
        return
    empty = "validation" if training else "training"
    split = validation_rows is None
    if split and training_rows.kept:
        found = f"{_where_rows_went(training_rows, 'dataset')}, and validation holds out at least one conversation"
        raise _error(empty, found, "add rows, or give a dataset.validation.source", "")
    rows = validation_rows if empty == "validation" and validation_rows is not None else training_rows
    remedy = (
        "give other rows for validation, or hold out a fraction with dataset.validation.fraction"
        if rows.held_out_copies
        else "correct the rejected rows, or add others"
    )
    found = _where_rows_went(rows, "dataset" if split else f"{empty} dataset")
    raise _error(empty, found, remedy, rows.summary())


def _error(empty: str, found: str, remedy: str, rejections: str) -> StageError:
    message = f"at least one {empty} example must be left, found none: {found}; {remedy}"
    return StageError(Reason.INVALID_DATASET, f"{message}. {rejections}" if rejections else message)


def _where_rows_went(rows: DatasetReport, name: str) -> str:
    parts = [
        f"{count} {'is' if count == 1 else 'are'} {what}"
        for count, what in (
            (rows.rejected_rows, "rejected"),
            (rows.duplicates, "repeated"),
            (rows.held_out_copies, "left out because they are also in the validation dataset"),
            (rows.kept, "kept"),
        )
        if count
    ]
    return f"of {rows.rows} rows of the {name}, {', '.join(parts)}"
