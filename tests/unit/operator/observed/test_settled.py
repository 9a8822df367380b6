from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.settled import Packer, SettledJob, unpacked

from tests.support.operator import make_job
from tests.support.world import World, started


def ended() -> JobRecord:
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        world.succeed(stage)
    world.settle()
    return world.job


def packed(job: JobRecord, packer: Packer | None = None) -> SettledJob:
    found = (packer or Packer()).pack(job)
    assert isinstance(found, SettledJob)
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


def test_jobs_of_one_kind_take_a_fifth_of_their_text() -> None:
    packer, job = Packer(), ended()
    first = packed(job, packer)
    other = packed(replace(job, status={**job.status, "specHash": "sha256:" + "5" * 64}), packer)
    assert other.dictionary is first.dictionary
    assert sys.getsizeof(other.packed) < len(json.dumps([job.spec, job.status])) / 5


@pytest.mark.parametrize(
    "job", [make_job(), started(Stage.TRAIN).job, make_job(status={"completionTime": "yesterday"})]
)
def test_a_job_that_has_not_ended_stays_as_it_is(job: JobRecord) -> None:
    assert Packer().pack(job) is job


def test_what_no_json_can_hold_stays_as_it_is() -> None:
    job = ended()
    odd = replace(job, status={**job.status, "odd": {1, 2}})
    assert Packer().pack(odd) is odd


def test_an_edit_after_the_end_awaits_a_decision() -> None:
    job = ended()
    assert packed(job).decided
    assert not packed(replace(job, generation=job.generation + 1)).decided
