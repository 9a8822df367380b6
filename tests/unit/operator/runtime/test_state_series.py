from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.stages import Stage
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.job_series import JobSeries
from finetune_operator.runtime.state_series import FAMILIES
from prometheus_client.parser import text_string_to_metric_families

from tests.support.world import World


def series(job: JobRecord, name: str) -> dict[tuple[str, ...], float]:
    """The series of one family by their further labels."""
    text = b"".join(JobSeries().render([job])).decode()
    return {
        tuple(
            value for label, value in sorted(sample.labels.items()) if label not in {"name", "namespace"}
        ): (sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_a_job_shows_its_phase_reason_and_stage() -> None:
    world = World()
    world.settle()
    assert series(world.job, "finetunejob_status_reason") == {("Preparing", "Pending"): 1}
    assert series(world.job, "finetunejob_stage") == {("Prepare",): 1}
    world.fail(Stage.PREPARE, "InvalidDataset")
    world.settle()
    assert series(world.job, "finetunejob_status_reason") == {("Failed", "InvalidDataset"): 1}


def test_a_reason_or_phase_that_is_not_known_is_other() -> None:
    world = World()
    world.settle()
    strange = [{"type": "Succeeded", "status": "Unknown", "reason": 'Evil"}\n'}]
    job = replace(world.job, status={**world.job.status, "conditions": strange, "phase": "Odd"})
    assert series(job, "finetunejob_status_reason") == {("Other", "Other"): 1}


def test_a_wait_has_its_start_until_the_job_ends() -> None:
    world = World()
    world.settle()
    waiting = {"since": "2026-11-24T09:00:00Z", "totalSeconds": 30}
    job = replace(world.job, status={**world.job.status, "waiting": waiting})
    assert series(job, "finetunejob_wait_start_timestamp_seconds") == {(): 1795510800}
    assert series(job, "finetunejob_waited_seconds") == {(): 30}
    ended = replace(job, status={**job.status, "completionTime": "2026-11-24T10:00:00Z"})
    assert series(ended, "finetunejob_wait_start_timestamp_seconds") == {}


def test_a_status_of_another_version_has_no_series_of_its_state() -> None:
    world = World()
    world.settle()
    job = replace(world.job, status={**world.job.status, "waiting": {"since": "soon"}})
    assert all(series(job, name) == {} for name in FAMILIES)
