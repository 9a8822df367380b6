from __future__ import annotations

from typing import Any

from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.status.reduced import RECORD, refused_members, without_refused

from tests.support.operator import NOW

STORED: dict[str, Any] = {"stage": {"name": "Train"}, "plan": {"a": 1}, "conditions": []}
WANTED: dict[str, Any] = {
    "stage": {"name": "Merge"},
    "plan": {"a": 2**70},
    "model": {"config": "x"},
    "conditions": [],
}


def reduced(wanted: dict[str, Any], refused: dict[str, Any]) -> dict[str, Any]:
    return without_refused(wanted, STORED, refused, "too large", 1, NOW)


def test_the_named_members_are_left_out() -> None:
    assert refused_members(["status.plan.memory.peakBytes"], WANTED, STORED) == {"plan"}
    assert refused_members(["status.model.config", "status.plan"], WANTED, STORED) == {"model", "plan"}


def test_without_a_name_all_changes_but_the_record_are_left_out() -> None:
    assert refused_members([], WANTED, STORED) == {"plan", "model"}
    assert refused_members(["metadata.name"], WANTED, STORED) == {"plan", "model"}


def test_a_refused_record_keeps_everything_as_it_was() -> None:
    assert refused_members(["status.stage.name"], WANTED, STORED) == {"stage", "plan", "model"}
    assert "stage" in RECORD


def test_a_refused_member_stays_as_it_was_stored_and_the_condition_says_so() -> None:
    status = reduced(WANTED, {"plan": WANTED["plan"], "model": WANTED["model"]})
    assert status["stage"] == {"name": "Merge"}
    assert status["plan"] == STORED["plan"]
    assert "model" not in status
    entry = find_condition(status, Condition.STATUS_REDUCED)
    assert (entry["status"], entry["reason"]) == ("True", "StatusRefused")
    assert entry["message"] == "status.model, status.plan: too large"


def test_another_value_is_tried_and_ends_the_condition() -> None:
    refused = {"plan": WANTED["plan"]}
    held = reduced(WANTED, refused)
    status = reduced({**held, "plan": {"a": 2}}, refused)
    assert status["plan"] == {"a": 2}
    assert find_condition(status, Condition.STATUS_REDUCED)["status"] == "False"


def test_a_status_that_was_never_refused_has_no_such_condition() -> None:
    assert reduced(WANTED, {}) == WANTED
