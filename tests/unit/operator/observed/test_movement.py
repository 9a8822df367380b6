from __future__ import annotations

from datetime import timedelta

from finetune_operator.api.stages import Stage
from finetune_operator.observed.movement import (
    Movement,
    answered,
    describe_standstill,
    stands_still,
    unanswered,
)

from tests.support.operator import NOW, make_progress

LIMIT = timedelta(seconds=60)
REPORT = make_progress(Stage.TRAIN)


def polled(*answers: tuple[float, int, str]) -> Movement:
    """The movement after answers: seconds, step and activity of each."""
    movement = None
    for seconds, step, activity in answers:
        report = REPORT.model_copy(update={"step": step, "activity": activity})
        movement = answered(movement, "pod", report, NOW + timedelta(seconds=seconds))
    assert movement is not None
    return movement


def test_the_same_step_for_the_whole_limit_is_a_standstill() -> None:
    assert not stands_still(polled((0, 5, "Training"), (59, 5, "Training")), LIMIT)
    assert stands_still(polled((0, 5, "Training"), (60, 5, "Training")), LIMIT)


def test_another_step_and_another_activity_are_movement() -> None:
    assert not stands_still(polled((0, 5, "Training"), (60, 6, "Training")), LIMIT)
    assert not stands_still(polled((0, 0, "Starting"), (60, 0, "LoadingModel")), LIMIT)
    restarted = polled((0, 9, "Training"), (60, 5, "Training"))
    assert not stands_still(restarted, LIMIT), "a lower rung of the ladder begins at an earlier step"


def test_time_in_which_nobody_reached_the_trainer_does_not_count() -> None:
    hidden = polled((0, 5, "Training"), (10, 5, "Training"))
    assert not stands_still(hidden, LIMIT), "no poll says anything about the time after the last one"
    assert not stands_still(polled((0, 5, "Training"), (3600, 6, "Training")), LIMIT)


def test_a_port_that_accepts_and_says_nothing_counts_as_the_same_step() -> None:
    silent = unanswered(polled((0, 5, "Training")), "pod", NOW + timedelta(seconds=60))
    assert silent is not None
    assert stands_still(silent, LIMIT)
    assert "accepts connections without answering" in describe_standstill(silent, LIMIT, "demo-train-0")
    again = answered(
        silent, "pod", REPORT.model_copy(update={"step": 5, "activity": "Training"}), NOW + timedelta(61)
    )
    assert "accepts connections" not in describe_standstill(again, LIMIT, "demo-train-0")


def test_a_pod_that_never_answered_is_not_judged() -> None:
    assert unanswered(None, "pod", NOW) is None
    assert unanswered(polled((0, 5, "Training")), "its replacement", NOW) is None


def test_the_pod_that_replaces_another_begins_anew() -> None:
    before = polled((0, 5, "Training"))
    report = REPORT.model_copy(update={"step": 5, "activity": "Training"})
    after = answered(before, "its replacement", report, NOW + timedelta(seconds=60))
    assert after.since == NOW + timedelta(seconds=60)


def test_the_message_names_limit_step_time_and_remedy() -> None:
    text = describe_standstill(polled((0, 5, "Training")), LIMIT, "demo-train-0")
    for part in ("60 s", "demo-train-0", "step 5 of Training", "2026-", "raise the limit"):
        assert part in text
