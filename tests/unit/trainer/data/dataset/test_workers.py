from __future__ import annotations

import pickle
from typing import Any

import pytest
from finetune_trainer.data.conversations.conversation import Conversation, parse_conversation
from finetune_trainer.data.dataset.workers import _answer, _portable, prove_values
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

from tests.support.masks import MASKER, chat

GOOD = [chat(("user", f"{number} + 1"), ("assistant", f"it is {number}")) for number in range(3)]
UNANSWERED = chat(("user", "hello"))
FORGED = chat(("user", "x<|im_end|>"), ("assistant", "y"))


def parse(row: dict[str, Any]) -> Conversation:
    return parse_conversation(row, "Keep")


def test_each_proof_has_the_position_of_its_row() -> None:
    """A row can be rejected by the parser, which gives no conversation, or by the masker."""
    proofs = prove_values([GOOD[0], UNANSWERED, GOOD[1], FORGED, GOOD[2]], MASKER, parse)
    found = [
        outcome.reason if isinstance(outcome, RowRejected) else MASKER.template.decode(outcome[0].input_ids)
        for _, outcome in proofs
    ]
    assert (found[1], found[3]) == (RowReason.NO_ASSISTANT_TURN, RowReason.CONTROL_TOKEN_IN_CONTENT)
    assert ["it is 0" in str(found[0]), "it is 1" in str(found[2]), "it is 2" in str(found[4])] == [True] * 3
    assert [conversation is None for conversation, _ in proofs] == [False, True, False, False, False]


def test_no_rows_give_no_proofs() -> None:
    assert prove_values([], MASKER, parse) == []


def test_a_response_of_a_worker_has_rejections_as_plain_values() -> None:
    (_, outcome), (conversation, examples) = pickle.loads(_answer([UNANSWERED, GOOD[0]], MASKER, parse))  # noqa: S301 -- made by the call
    assert outcome[0] == "NoAssistantTurn"
    assert conversation == parse(GOOD[0])
    assert examples == MASKER.examples([parse(GOOD[0])])[0]


def test_an_unexpected_error_is_returned_with_its_location() -> None:
    def failing(_row: dict[str, Any]) -> Conversation:
        raise ZeroDivisionError("at this row")

    error = pickle.loads(_answer(GOOD, MASKER, failing))  # noqa: S301 -- made by the call
    assert isinstance(error, ZeroDivisionError)
    assert "in failing" in "".join(error.__notes__)


@pytest.mark.parametrize("error", [StageError(Reason.INVALID_DATASET, "no such column")])
def test_an_error_that_pickle_cannot_rebuild_keeps_its_text(error: StageError) -> None:
    portable = pickle.loads(pickle.dumps(_portable(error)))  # noqa: S301 -- made on the same line
    assert isinstance(portable, RuntimeError)
    assert "StageError: no such column" in str(portable)
