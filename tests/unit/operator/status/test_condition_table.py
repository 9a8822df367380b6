from __future__ import annotations

import pytest
from finetune_operator.api.conditions import Condition
from finetune_operator.status.condition_table import TABLE, JobState, conditions_of


@pytest.mark.parametrize(
    ("state", "statuses"),
    [
        # As kstatus and the API conventions read them: Succeeded, Reconciling, Stalled, Suspended.
        (JobState.PROGRESSING, ("Unknown", "True", "False", "False")),
        (JobState.STALLED, ("Unknown", "False", "True", "False")),
        (JobState.QUEUED, ("Unknown", "True", "False", "True")),
        (JobState.SUSPENDED, ("Unknown", "False", "False", "True")),
        (JobState.COMPLETED, ("True", "False", "False", "False")),
        (JobState.FAILED, ("False", "False", "True", "False")),
    ],
)
def test_each_state_has_its_four_statuses(state: JobState, statuses: tuple[str, ...]) -> None:
    entries = conditions_of(state, "Because", "the message")
    assert [entry.condition for entry in entries] == ["Succeeded", "Reconciling", "Stalled", "Suspended"]
    assert tuple(entry.status for entry in entries) == statuses


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_has_a_row_and_succeeded_carries_the_jobs_reason(state: JobState) -> None:
    assert state in TABLE
    succeeded, *others = conditions_of(state, "Because", "the message")
    assert (succeeded.reason, succeeded.message) == ("Because", "the message")
    for entry in others:
        assert (entry.message == "the message") == (entry.reason == "Because")


@pytest.mark.parametrize("state", list(JobState))
def test_no_job_is_reconciling_and_stalled_at_once(state: JobState) -> None:
    statuses = {entry.condition: entry.status for entry in conditions_of(state, "Because")}
    assert (statuses[Condition.RECONCILING], statuses[Condition.STALLED]) != ("True", "True")
