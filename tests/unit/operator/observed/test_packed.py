from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.packed import PackedJob, Packer, unpacked

from tests.support.operator import make_job
from tests.support.world import World, started


def ended() -> JobRecord:
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        world.succeed(stage)
    world.settle()
    return world.job


def packed(job: JobRecord, packer: Packer | None = None) -> PackedJob:
    found = (packer or Packer()).pack(job)
    assert isinstance(found, PackedJob)
    return found


def test_an_ended_job_comes_back_as_it_was() -> None:
    packer, job = Packer(), ended()
    strange = {
        "infinite": float("inf"),
        "big": 2**80,
        "text": "naïve \ud800 \x00",
        "none": None,
        "list": [1.0, 1],
    }
    others = [
        replace(job, name=f"other-{n}", status={**job.status, "more": strange, "n": n}) for n in range(3)
    ]
    for each in [job, *others, replace(job, deleting=True, generation=7)]:
        found = packed(each, packer)
        assert unpacked(found) == each
        assert (found.key, found.phase, found.completed) == (each.key, each.phase, each.completed)


@pytest.mark.parametrize("kind", ["ReportPublished", "Tracked"])
@pytest.mark.parametrize(("status", "decided"), [("Unknown", False), ("True", True), ("False", True)])
def test_a_job_is_not_settled_while_its_report_is_on_its_way(
    kind: str, status: str, *, decided: bool
) -> None:
    job = ended()
    entry = {"type": kind, "status": status, "reason": "Any", "message": ""}
    conditions = [*job.status["conditions"], entry]
    assert packed(replace(job, status={**job.status, "conditions": conditions})).decided is decided


def test_jobs_of_one_kind_take_a_fifth_of_their_text() -> None:
    packer, job = Packer(), ended()
    first = packed(job, packer)
    other = packed(replace(job, status={**job.status, "specHash": "sha256:" + "5" * 64}), packer)
    assert other.dictionary is first.dictionary
    assert sys.getsizeof(other.packed) < len(json.dumps([job.spec, job.status])) / 5


@pytest.mark.parametrize(
    "job", [make_job(), started(Stage.TRAIN).job, make_job(status={"completionTime": "yesterday"})]
)
def test_a_job_that_has_not_ended_comes_back_and_is_not_decided(job: JobRecord) -> None:
    found = packed(job)
    assert unpacked(found) == job
    assert (found.completed, found.decided, found.phase) == (None, False, job.phase)


@pytest.mark.parametrize(
    ("status", "lacking"),
    [
        ({}, True),
        ({"stage": {"name": "Train"}}, True),
        ({"stage": {"name": "Train", "node": "a"}}, False),
        ({"stage": {"name": "Merge"}}, False),
        ({"completionTime": "2026-11-24T09:00:00Z"}, False),
        ({"stage": "of another version"}, False),
    ],
)
def test_it_shows_without_unpacking_who_waits_for_a_gpu(status: dict[str, Any], *, lacking: bool) -> None:
    assert packed(make_job(status=status)).lacks_gpu is lacking


def test_a_job_in_a_later_stage_becomes_the_dictionary_of_those_like_it() -> None:
    packer, job = Packer(), started(Stage.MERGE).job
    pending = packed(make_job(), packer)
    first = packed(job, packer)
    other = packed(replace(job, status={**job.status, "specHash": "sha256:" + "5" * 64}), packer)
    assert other.dictionary is first.dictionary is not pending.dictionary
    assert sys.getsizeof(other.packed) < len(json.dumps([job.spec, job.status])) / 5
    assert unpacked(pending) == make_job()


def test_few_dictionaries_are_ever_made() -> None:
    packer = Packer()
    jobs = [make_job(status={"text": [str(n) for n in range(size)]}) for size in range(0, 9000, 40)]
    found = [packed(job, packer) for job in jobs]
    assert [unpacked(each) for each in found] == jobs
    assert len({each.dictionary for each in found}) <= 12


@pytest.mark.parametrize("odd", [object(), MappingProxyType({})])
def test_what_cannot_be_packed_stays_as_it_is(odd: object) -> None:
    job = ended()
    strange = replace(job, status={**job.status, "odd": odd})
    assert Packer().pack(strange) is strange


def test_a_deep_status_is_packed_and_one_that_is_too_deep_stays_as_it_is() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    job = ended()
    nested = replace(job, status={**job.status, "deep": deep})
    assert unpacked(packed(nested)) == nested
    for _ in range(5000):
        deep = [deep]
    deeper = replace(job, status={**job.status, "deep": deep})
    assert Packer().pack(deeper) is deeper


def test_an_edit_after_the_end_awaits_a_decision() -> None:
    job = ended()
    assert packed(job).decided
    assert not packed(replace(job, generation=job.generation + 1)).decided


def test_an_ended_job_keeps_its_labels() -> None:
    job = replace(ended(), labels={"team": "vision"})
    assert unpacked(packed(job)) == job
