from __future__ import annotations

import pytest
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.dataset.remaining import require_examples
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError


def report(
    rows: int, kept: int = 0, rejected: int = 0, duplicates: int = 0, held_out_copies: int = 0
) -> DatasetReport:
    made = DatasetReport(rows=rows, kept=kept, duplicates=duplicates, held_out_copies=held_out_copies)
    for number in range(rejected):
        made.reject(number + 1, RowRejected(RowReason.NO_ASSISTANT_TURN, "messages", "no answer"))
    return made


def message(
    training: int, validation: int, training_rows: DatasetReport, validation_rows: DatasetReport | None = None
) -> str:
    with pytest.raises(StageError) as caught:
        require_examples(training, validation, training_rows, validation_rows)
    assert caught.value.reason is Reason.INVALID_DATASET
    return caught.value.message


def test_one_example_for_each_purpose_is_enough() -> None:
    require_examples(1, 1, report(2, kept=2), None)
    require_examples(1, 1, report(1, kept=1), report(1, kept=1))


def test_one_conversation_cannot_be_trained_and_held_out() -> None:
    assert message(0, 1, report(3, kept=1, duplicates=2)) == (
        "at least one training example must be left, found none: of 3 rows of the dataset, 2 are repeated, 1 is kept, "
        "and validation holds out at least one conversation; add rows, or give a dataset.validation.source"
    )


def test_training_rows_that_are_all_validated_are_counted() -> None:
    found = message(0, 5, report(6, duplicates=1, held_out_copies=5), report(5, kept=5))
    where = "of 6 rows of the training dataset, 1 is repeated, 5 are left out because they are also in the validation dataset"
    assert where in found
    assert found.endswith(
        "give other rows for validation, or hold out a fraction with dataset.validation.fraction"
    )


@pytest.mark.parametrize("with_validation", [True, False])
def test_rows_that_are_all_rejected_say_why(*, with_validation: bool) -> None:
    found = message(0, 0, report(2, rejected=2), report(1, kept=1) if with_validation else None)
    assert (
        "2 are rejected; correct the rejected rows, or add others. 2 NoAssistantTurn in rows 1, 2. Row 1,"
        in found
    )
    assert found.endswith("Remedy: add the answer.")


def test_a_validation_dataset_without_usable_rows_is_named() -> None:
    found = message(3, 0, report(3, kept=3), report(2, rejected=2))
    said = "at least one validation example must be left, found none: of 2 rows of the validation dataset, 2 are rejected;"
    assert found.startswith(said)
