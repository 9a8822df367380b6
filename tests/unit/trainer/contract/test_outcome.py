from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from finetune_trainer.contract.bounds import MAXIMUM_LOG_LINE, MAXIMUM_LOG_LINES, MAXIMUM_MESSAGE
from finetune_trainer.contract.exit_codes import ExitCode
from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.outcome import Outcome, make_result
from finetune_trainer.contract.result import Result, StageResult
from finetune_trainer.errors import Reason

from tests.support.results import TRAIN

NOW = datetime(2026, 1, 31, 10, tzinfo=UTC)


def result(outcome: Outcome, log_tail: list[str]) -> Result:
    return make_result(
        Identity("uid", "Train", 3),
        outcome,
        started=NOW,
        completed=NOW + timedelta(seconds=1),
        peak_memory_bytes=None,
        log_tail=log_tail,
    )


@pytest.mark.parametrize(
    ("reason", "name", "code"),
    [
        (Reason.INTERNAL_ERROR, "Failed", ExitCode.RETRYABLE),
        (Reason.INVALID_DATASET, "Failed", ExitCode.PERMANENT),
        (Reason.INTERRUPTED, "Interrupted", ExitCode.INTERRUPTED),
    ],
)
def test_a_failure_has_the_name_and_exit_code_of_its_reason(
    reason: Reason, name: str, code: ExitCode
) -> None:
    outcome = Outcome.failure(reason, "m")
    assert (outcome.name, outcome.code) == (name, code)


def test_a_success_has_its_members_and_no_log() -> None:
    outcome = Outcome(StageResult(train=TRAIN))
    document = result(outcome, ["never shown"]).document()
    assert (outcome.name, outcome.code) == ("Succeeded", ExitCode.SUCCEEDED)
    assert document == {
        "version": "1.13",
        "uid": "uid",
        "stage": "Train",
        "attempt": 3,
        "outcome": "Succeeded",
        "startTime": "2026-01-31T10:00:00.000Z",
        "completionTime": "2026-01-31T10:00:01.000Z",
        "peakMemoryBytes": None,
        "train": TRAIN.document(),
    }


def test_a_failure_names_the_rank_that_failed_first_if_one_did() -> None:
    named = result(Outcome.failure(Reason.INTERNAL_ERROR, "m", 0), []).document()
    assert named["rank"] == 0
    assert "rank" not in result(Outcome.failure(Reason.INTERNAL_ERROR, "m"), []).document()


def test_a_failure_has_its_reason_and_the_last_log_lines_within_bounds() -> None:
    found = result(
        Outcome.failure(Reason.INTERNAL_ERROR, "m" * 2000), [f"{n} " + "l" * 300 for n in range(30)]
    )
    assert found.reason == "InternalError"
    assert found.message is not None
    assert len(found.message) == MAXIMUM_MESSAGE
    assert len(found.log_tail) == MAXIMUM_LOG_LINES
    assert found.log_tail[-1].startswith("29 ")
    assert {len(line) for line in found.log_tail} == {MAXIMUM_LOG_LINE}
