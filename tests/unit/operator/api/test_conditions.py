from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.api.conditions import (
    MAXIMUM_MESSAGE_LENGTH,
    Condition,
    Conditions,
    Truth,
    find_condition,
)

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


def later(stored: list[dict[str, Any]], generation: int = 2) -> Conditions:
    """The stored conditions, one hour later and at another generation."""
    return Conditions(stored, generation, NOW + timedelta(hours=1))


def stored_stalled() -> list[dict[str, Any]]:
    conditions = Conditions([], 1, NOW)
    conditions.set(Condition.STALLED, Truth.TRUE, "DoesNotFit", "first")
    return conditions.to_list()


def test_a_transition_time_moves_only_with_the_status() -> None:
    conditions = later(stored_stalled())
    conditions.set(Condition.STALLED, Truth.TRUE, "GpuNotSupported", "second")
    (same,) = conditions.to_list()
    assert same["lastTransitionTime"] == "2026-11-24T09:00:00Z"
    assert (same["reason"], same["message"], same["observedGeneration"]) == ("GpuNotSupported", "second", 2)
    conditions.set(Condition.STALLED, Truth.FALSE, "Progressing")
    assert conditions.to_list()[0]["lastTransitionTime"] == "2026-11-24T10:00:00Z"


def test_conditions_are_listed_in_their_fixed_order() -> None:
    conditions = Conditions([], 1, NOW)
    for kind in reversed(Condition):
        conditions.set(kind, Truth.UNKNOWN, "Pending")
    assert [entry["type"] for entry in conditions.to_list()] == [kind.value for kind in Condition]


def test_a_message_is_cut_to_the_length_that_the_crd_allows() -> None:
    conditions = Conditions([], 1, NOW)
    conditions.set(Condition.STALLED, Truth.TRUE, "DoesNotFit", "x" * 5000)
    assert len(conditions.to_list()[0]["message"]) == MAXIMUM_MESSAGE_LENGTH


def test_set_if_missing_writes_once_and_then_only_updates_the_generation() -> None:
    conditions = later(stored_stalled())
    conditions.set_if_missing(Condition.STALLED, Truth.FALSE, "Pending")
    conditions.set_if_missing(Condition.TRAINED, Truth.UNKNOWN, "AwaitingStage")
    stalled, trained = conditions.to_list()
    assert (stalled["status"], stalled["reason"], stalled["observedGeneration"]) == ("True", "DoesNotFit", 2)
    assert (trained["status"], trained["reason"]) == ("Unknown", "AwaitingStage")


def test_a_condition_that_was_never_written_is_unknown_without_a_reason() -> None:
    conditions = later(stored_stalled())
    assert (conditions.status(Condition.SUCCEEDED), conditions.reason(Condition.SUCCEEDED)) == ("Unknown", "")
    assert conditions.is_true(Condition.STALLED)
    assert conditions.reason(Condition.STALLED) == "DoesNotFit"


def test_stored_conditions_are_not_changed_in_place() -> None:
    stored = stored_stalled()
    later(stored).set_if_missing(Condition.STALLED, Truth.FALSE, "Pending")
    assert stored == stored_stalled()


def test_a_condition_is_found_in_a_status() -> None:
    status = {"conditions": stored_stalled()}
    assert find_condition(status, Condition.STALLED)["reason"] == "DoesNotFit"
    assert find_condition(status, Condition.SUCCEEDED) == {}
    assert find_condition({}, Condition.STALLED) == {}
