from __future__ import annotations

import pytest
from finetune_operator.api.reasons import OPERATOR_CLASSES, ReasonClass
from finetune_operator.api.stages import (
    WORK_STAGES,
    Stage,
    child_name,
    job_of_set,
    parse_child_name,
    workspace_claim_name,
)
from finetune_operator.api.validation import MAXIMUM_NAME_LENGTH


def test_stages_follow_each_other() -> None:
    assert [stage.next for stage in (Stage.PREPARE, Stage.TRAIN, Stage.MERGE)] == [
        Stage.TRAIN,
        Stage.MERGE,
        None,
    ]


def test_nothing_follows_the_report() -> None:
    assert Stage.REPORT.next is None
    assert Stage.REPORT not in WORK_STAGES


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_every_stage_has_an_active_reason(stage: Stage) -> None:
    assert OPERATOR_CLASSES[stage.active_reason] is ReasonClass.ACTIVE


def test_every_attempt_of_every_stage_has_its_own_name() -> None:
    names = {child_name("demo", stage, attempt) for stage in Stage for attempt in range(3)}
    assert len(names) == 12
    assert child_name("demo", Stage.TRAIN, 2) == "demo-train-2"


@pytest.mark.parametrize("job", ["demo", "demo-train-1", "a-prepare-0-merge-2"])
@pytest.mark.parametrize("stage", list(Stage))
def test_a_childs_name_says_its_job_stage_and_attempt(job: str, stage: Stage) -> None:
    assert parse_child_name(child_name(job, stage, 17)) == (job, stage, 17)


@pytest.mark.parametrize("name", ["demo", "demo-cook-0", "demo-train", "demo-train-01", "-train-", "train-0"])
def test_any_other_name_is_that_of_no_child(name: str) -> None:
    assert parse_child_name(name) is None


def test_the_longest_job_name_leaves_room_for_child_names() -> None:
    """A label's value, and so a Job's name, has at most 63 characters. Attempts end at 1000."""
    name = "n" * MAXIMUM_NAME_LENGTH
    longest = max(len(child_name(name, stage, 1000)) for stage in Stage)
    assert max(longest, len(workspace_claim_name(name))) <= 63


def test_the_job_of_a_job_set_has_a_name_of_the_same_child() -> None:
    name = child_name("demo", Stage.TRAIN, 2)
    assert parse_child_name(job_of_set(name)) == parse_child_name(name)
