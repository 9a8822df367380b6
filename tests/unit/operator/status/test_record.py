from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.reasons import Reason
from finetune_operator.api.stages import Stage
from finetune_operator.status.record import StatusRecord

from tests.support.operator import NOW, make_job

START = "2026-11-24T08:50:00Z"


def read(**status: Any) -> StatusRecord:
    return StatusRecord.read(make_job(status=status), NOW)


def test_an_empty_status_is_that_of_a_new_job() -> None:
    record = read()
    assert (record.stage, record.attempt, record.job_seen) == (Stage.PREPARE, 0, False)
    assert not record.finished
    assert record.starting_reason is Reason.PENDING
    assert (record.config, record.dataset, record.longest_example, record.plan) == (None, None, None, {})
    assert (record.attempt_duration, record.waited) == (timedelta(), timedelta())


def test_only_the_first_attempt_of_the_first_stage_is_pending() -> None:
    assert read(stage={"name": "Prepare", "attempt": 1}).starting_reason is Reason.PREPARING
    assert read(stage={"name": "Train", "attempt": 0}).starting_reason is Reason.TRAINING


def test_the_age_of_an_attempt_counts_from_its_job() -> None:
    assert read(stage={"name": "Train", "attempt": 0, "startTime": START}).attempt_duration == timedelta(
        minutes=10
    )
    future = "2026-11-24T09:00:05Z"
    assert read(stage={"name": "Train", "attempt": 0, "startTime": future}).attempt_duration == timedelta()


@pytest.mark.parametrize(
    ("waiting", "seconds"),
    [
        ({"totalSeconds": 30}, 30),
        ({"since": START}, 600),
        ({"since": START, "totalSeconds": 30}, 630),
        ({"since": "2026-11-24T09:00:05Z", "totalSeconds": 30}, 30),
    ],
)
def test_earlier_waits_and_the_current_one_add_up(waiting: dict[str, Any], seconds: int) -> None:
    assert read(waiting=waiting).waited == timedelta(seconds=seconds)


ATTEMPTS = [
    {"stage": "Prepare", "attempt": 0, "outcome": "Succeeded", "reason": "StageSucceeded", "node": "n"},
    {"stage": "Train", "attempt": 0, "outcome": "Failed", "reason": "HostOutOfMemory"},
    {"stage": "Train", "attempt": 1, "outcome": "Interrupted", "reason": "Interrupted", "node": "n"},
]


def test_attempts_are_found_and_counted_by_stage() -> None:
    record = read(stage={"name": "Train", "attempt": 2}, attempts=ATTEMPTS)
    assert record.find_attempt(Stage.TRAIN, 1) == ATTEMPTS[2]
    assert record.find_attempt(Stage.MERGE, 0) is None
    assert record.count_attempts(Stage.TRAIN, "Failed") == 1
    assert record.count_attempts(Stage.TRAIN, "Succeeded") == 0
    assert record.out_of_memory_kills == 1


def test_training_has_begun_once_a_pod_of_train_has_had_a_node() -> None:
    train = {"name": "Train", "attempt": 2}
    assert read(stage=train, attempts=ATTEMPTS).training_begun
    assert not read(stage=train, attempts=ATTEMPTS[:2]).training_begun, "a node of PREPARE does not count"
    assert read(stage={**train, "node": "n"}).training_begun


def test_the_config_keeps_its_nulls() -> None:
    assert read(model={"config": '{"rope_scaling":null}'}).config == {"rope_scaling": None}


def test_the_destination_is_awaited_in_merge_until_an_attempt_ends_otherwise() -> None:
    failed = {"stage": "Merge", "attempt": 0, "outcome": "Failed", "reason": "DestinationUnwritable"}
    lost = {"stage": "Merge", "attempt": 1, "outcome": "Failed", "reason": "StageLost"}
    merge = {"name": "Merge", "attempt": 2}
    waiting = read(stage=merge, attempts=[*ATTEMPTS, failed])
    assert waiting.awaits_destination
    assert waiting.starting_reason is Reason.WAITING_FOR_DESTINATION
    record = read(stage=merge, attempts=[failed, lost])
    assert not record.awaits_destination
    assert record.destination_failures == 1
    assert not read(stage={"name": "Prepare", "attempt": 1}, attempts=[failed]).awaits_destination


def test_of_two_attempts_with_one_number_the_later_one_counts() -> None:
    old = {"stage": "Merge", "attempt": 0, "outcome": "Interrupted", "reason": "Disrupted"}
    new = {"stage": "Merge", "attempt": 0, "outcome": "Failed", "reason": "DestinationUnwritable"}
    record = read(stage={"name": "Merge", "attempt": 1}, attempts=[old, new])
    assert record.find_attempt(Stage.MERGE, 0) == record.last_attempt == new
