from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.lifecycle.actions import CreateClaim, CreateJob, Decision
from finetune_operator.lifecycle.decide import decide
from finetune_operator.observed.observation import Claim, Rejection
from finetune_operator.settings import Settings
from finetune_operator.sizing.cost.prices import CostSettings

from tests.support.operator import SETTINGS, make_job, make_spec
from tests.support.world import World, started

MESSAGE = "the API server rejected PersistentVolumeClaim demo-workspace: exceeded quota"


def without_claim() -> World:
    """A world in which only the Job of the first two objects has arrived."""
    world = World()
    world.step(arrives=lambda action: isinstance(action, CreateJob))
    return world


def has_claim(world: World) -> bool:
    return world.claim is not None


def test_a_claim_that_was_lost_is_created_as_it_would_have_been() -> None:
    settings = Settings(trainer=SETTINGS.trainer, cost=CostSettings(labels=("team",)))
    world = World(job=make_job(labels={"team": "a"}), settings=settings)
    first = [action for action in world.decide().actions if isinstance(action, CreateClaim)]
    world.step(arrives=lambda action: isinstance(action, CreateJob))
    again = [action for action in world.decide().actions if isinstance(action, CreateClaim)]
    assert again == first
    assert first[0].body["metadata"]["labels"]["team"] == "a"


@pytest.mark.parametrize("spec", [{}, {"cpuQueueName": "cpu"}])
def test_a_job_never_stays_without_a_claim_that_is_refused(spec: dict[str, Any]) -> None:
    """Another object may have the name of the claim, and the pod must not run in it."""
    world = World(job=make_job(spec=make_spec(**spec)))
    world.step(arrives=lambda action: isinstance(action, CreateJob))
    world.rejection = Rejection(MESSAGE, world.now + timedelta(seconds=15))
    world.settle()
    assert world.children == {}
    assert not has_claim(world)
    assert world.condition("Reconciling") == ("True", "ChildRefused")
    assert MESSAGE in str(world.job.status["conditions"])
    assert not world.job.status.get("attempts"), "it costs no retry"
    decision = world.decide()
    assert decision.requeue_time == world.rejection.retry_time
    world.wait(15)
    found = [type(action) for action in world.decide().actions]
    assert found == [CreateClaim, CreateJob], "the Job depends on the claim"
    world.rejection = None
    world.settle()
    assert has_claim(world)
    assert set(world.children) == {"demo-prepare-1"}


def test_an_invalid_claim_ends_the_job_and_its_job_is_deleted() -> None:
    world = without_claim()
    world.rejection = Rejection("the API server rejected it", world.now, final=True)
    world.settle()
    assert world.job.status["failure"]["reason"] == "InvalidSpec"
    assert world.children == {}


def test_a_workspace_of_the_user_is_never_created() -> None:
    world = World(job=make_job(spec=make_spec(workspace={"existingClaim": "mine"})))
    world.settle()
    assert world.created == ["demo-prepare-0"]
    assert not has_claim(world)


def test_a_workspace_that_disappears_after_its_pod_has_a_node_is_not_replaced() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    world.claim = None
    world.settle()
    assert not has_claim(world)


def test_a_claim_of_the_previous_job_of_this_name_is_waited_for() -> None:
    world = without_claim()
    previous = Claim("demo-workspace", "claim-old", "uid-old", "1", deleting=True)
    observation = replace(world.observe(), previous_claim=previous)
    decision = decide(observation, world.settings, world.now)
    assert isinstance(decision, Decision)
    assert decision.actions == ()
    assert decision.requeue_time == world.now + timedelta(seconds=1)
