from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.job_series import JobSeries
from prometheus_client.parser import text_string_to_metric_families

from tests.support.operator import TRAIN, make_inventory, make_job, make_spec
from tests.support.world import World, started

MEASURED = {"allocatedBytes": 10**9, "reservedBytes": 2 * 10**9}
LABELS = {"namespace": "team", "name": "demo"}


class Rendered:
    """The series of a rendering, as Prometheus reads them."""

    def __init__(self, jobs: Iterable[JobRecord], series: JobSeries | None = None) -> None:
        self.text = b"".join((JobSeries() if series is None else series).render(list(jobs))).decode()
        self.families = list(text_string_to_metric_families(self.text))

    def value(self, name: str, labels: dict[str, str]) -> float | None:
        """The value of one series; None if there is no such series."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def count(self) -> int:
        """The number of series of single jobs."""
        return sum("name" in sample.labels for family in self.families for sample in family.samples)


def ended() -> World:
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        world.succeed(stage)
    world.settle()
    return world


def test_a_job_has_the_series_of_its_status() -> None:
    world = ended()
    found = Rendered([world.job])
    assert found.value("finetunejob_info", {**LABELS, "model": "smol", "phase": "Succeeded"}) == 1
    condition = {**LABELS, "type": "Succeeded"}
    assert found.value("finetunejob_status_condition", {**condition, "status": "True"}) == 1
    assert found.value("finetunejob_status_condition", {**condition, "status": "False"}) == 0
    assert found.value("finetunejob_progress_ratio", LABELS) == 1
    assert found.value("finetunejob_train_loss", LABELS) == 0.5
    assert found.value("finetunejob_base_loss", LABELS) == 2
    assert found.value("finetunejob_attempts", LABELS) == 3
    assert found.value("finetunejob_requested_gpus", LABELS) == 1
    assert found.value("finetunejob_completion_timestamp_seconds", LABELS) == world.now.timestamp()


def test_a_family_is_one_group_of_lines_for_all_jobs() -> None:
    job = ended().job
    found = Rendered(replace(job, name=f"demo{number}", uid=f"{number}") for number in range(1201))
    names = [line.split(" ")[2] for line in found.text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    for family in found.families:
        assert {sample.name for sample in family.samples} <= {family.name}
    assert found.count == 1201 * Rendered([job]).count


def test_the_lines_of_a_job_follow_its_object_and_end_with_it() -> None:
    series, job = JobSeries(), ended().job
    assert Rendered([job], series).value("finetunejob_train_loss", LABELS) == 0.5
    progress = {**job.status["progress"], "loss": "0.25"}
    unchanged = replace(job, status={**job.status, "progress": progress})
    assert Rendered([unchanged], series).value("finetunejob_train_loss", LABELS) == 0.5, "it is cached"
    changed = replace(unchanged, resource_version="99999")
    assert Rendered([changed], series).value("finetunejob_train_loss", LABELS) == 0.25
    assert Rendered([], series).count == 0
    series.forget_others([])
    assert len(series) == 0


def test_a_job_without_status_has_the_series_that_are_known() -> None:
    found = Rendered([make_job()])
    assert found.value("finetunejob_info", {**LABELS, "model": "smol", "phase": "Pending"}) == 1
    assert found.value("finetunejob_created_timestamp_seconds", LABELS) is not None
    assert found.value("finetunejob_progress_ratio", LABELS) is None


def test_estimated_and_measured_memory_have_a_ratio_once_there_is_a_measurement() -> None:
    world = started(Stage.TRAIN)
    estimated = Rendered([world.job]).value("finetunejob_memory_estimated_bytes", LABELS)
    assert estimated == world.job.status["plan"]["memory"]["peakBytes"]
    assert Rendered([world.job]).value("finetunejob_memory_ratio", LABELS) is None
    world.succeed(Stage.TRAIN, train={**TRAIN, "memory": MEASURED})
    world.settle()
    found = Rendered([world.job])
    assert found.value("finetunejob_memory_measured_bytes", LABELS) == 10**9
    assert found.value("finetunejob_memory_ratio", LABELS) == 10**9 / int(estimated or 0)


def test_stalled_jobs_are_counted_by_reason() -> None:
    world = World(inventory=make_inventory())
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    found = Rendered([world.job, replace(world.job, name="other", uid="other")])
    assert found.value("finetunejobs_stalled", {"reason": "DoesNotFit"}) == 2
    assert found.value("finetunejobs_stalled", {"reason": "GpuNotSupported"}) == 0


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"model": "smol"}, {}),
        (make_spec(), {"phase": 5, "conditions": [{"kind": "Succeeded"}], "progress": {"percent": 5}}),
        (make_spec(), {"conditions": "x", "attempts": 7, "completionTime": 9}),
    ],
)
def test_what_another_version_wrote_ends_no_scrape(spec: dict[str, Any], status: dict[str, Any]) -> None:
    found = Rendered([make_job(spec, status), replace(ended().job, uid="other", name="other")])
    assert found.value("finetunejob_train_loss", {**LABELS, "name": "other"}) == 0.5


def test_texts_in_labels_are_escaped() -> None:
    spec = make_spec(model={"source": {"huggingFace": {"repository": 'a"b\\c\nd'}}})
    labels = {**LABELS, "model": 'a"b\\c\nd', "phase": "Pending"}
    assert Rendered([make_job(spec)]).value("finetunejob_info", labels) == 1
