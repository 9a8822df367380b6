from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.actions import Action, CreateClaim, CreateJob
from finetune_operator.observed.observation import Rejection

from tests.support.operator import make_job, make_spec
from tests.support.world import World, started


def test_a_new_job_starts_before_its_status_is_written() -> None:
    decision = World().decide()
    assert decision.acts_first
    assert [type(action) for action in decision.actions] == [CreateClaim, CreateJob]


def test_a_job_whose_first_start_has_waited_needs_no_record_either() -> None:
    world = World()
    world.rejection = Rejection("no quota", world.now + timedelta(seconds=15))
    world.step()
    assert world.job.status["phase"] == "Pending"
    world.rejection = None
    assert world.decide().acts_first


def test_a_refusal_is_said_before_the_creation_is_tried_again() -> None:
    world = World()
    world.rejection = Rejection("no quota", world.now)
    decision = world.decide()
    assert any(isinstance(action, CreateJob) for action in decision.actions)
    assert not decision.acts_first


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.MERGE])
def test_later_stages_start_after_their_status(stage: Stage) -> None:
    world = started(stage)
    world.delete_child(f"demo-{stage.slug}-0")
    world.step()
    world.wait(3600)
    decision = world.decide()
    assert any(isinstance(action, CreateJob) for action in decision.actions)
    assert not decision.acts_first


def test_a_second_attempt_of_prepare_starts_after_its_status() -> None:
    world = started()
    world.delete_child("demo-prepare-0")
    decision = world.step()
    while not any(isinstance(action, CreateJob) for action in decision.actions):
        world.wait(60)
        decision = world.step()
    assert not decision.acts_first
    assert world.created[-1] == "demo-prepare-1"


@pytest.mark.parametrize("changes", [{"suspend": True}, {"lifecycle": {"deadlineSeconds": -1}}])
def test_a_job_that_does_not_start_is_only_recorded(changes: dict[str, object]) -> None:
    decision = World(job=make_job(spec=make_spec(**changes))).decide()
    assert decision.actions == ()
    assert not decision.acts_first


@pytest.mark.parametrize("arriving", [(), (CreateClaim,), (CreateJob,), (CreateClaim, CreateJob)])
def test_any_loss_of_the_two_creations_leads_to_the_same_record(arriving: tuple[type[Action], ...]) -> None:
    undisturbed, world = World(), World()
    undisturbed.settle()
    world.step(arrives=lambda action: isinstance(action, arriving))
    world.settle()
    assert world.created == ["demo-prepare-0"]
    assert world.claim is not None
    assert world.job.status == undisturbed.job.status
    for stage in WORK_STAGES:
        world.succeed(stage)
        world.settle()
    assert world.job.status["phase"] == "Succeeded"
    assert world.created == ["demo-prepare-0", "demo-train-0", "demo-merge-0"]


def test_a_late_first_status_counts_from_the_creation_of_the_job() -> None:
    world = World()
    world.step()
    created = world.now
    world.wait(30)
    world.settle()
    status = world.job.status
    assert status["startTime"] == status["stage"]["startTime"] == f"{created:%Y-%m-%dT%H:%M:%SZ}"
    assert [entry["stage"] for entry in status["plan"]["hosts"]] == ["Prepare"]


def test_the_clock_of_a_resumed_job_starts_at_its_resumption() -> None:
    world = started()
    spec = world.job.spec
    world.job = replace(world.job, spec=make_spec(suspend=True), generation=2)
    world.settle()
    world.wait(300)
    world.job = replace(world.job, spec=spec, generation=3)
    world.settle()
    assert world.job.status["startTime"] == f"{world.now:%Y-%m-%dT%H:%M:%SZ}"
