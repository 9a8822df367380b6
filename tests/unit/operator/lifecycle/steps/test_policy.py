from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateClaim, CreateJob
from finetune_operator.settings import Settings

from tests.support.operator import SETTINGS, make_spec
from tests.support.world import World, started

HIGH = {"resources": {"priorityClassName": "high"}}


def with_policy(**policy: Any) -> Settings:
    return Settings.model_validate({**SETTINGS.model_dump(), "policy": policy})


DENYING = with_policy(limits={"priorityClassNames": ["batch"]})


def message(world: World) -> str:
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Stalled")
    return str(entry["message"])


def new(settings: Settings) -> World:
    """A job that nobody has decided about."""
    return World(job=replace(started().job, spec=make_spec(**HIGH), status={}), settings=settings)


def test_a_job_that_the_policy_forbids_starts_nothing_and_says_what_it_breaks() -> None:
    world = new(DENYING)
    world.settle()
    assert world.created == []
    assert world.claim is None
    assert world.condition("Stalled") == ("True", "PolicyDenied")
    assert world.condition("Succeeded") == ("Unknown", "PolicyDenied")
    assert "spec.resources.priorityClassName must be one of batch, found high" in message(world)
    assert world.job.status["phase"] == "Stalled"
    assert "since" in world.job.status["waiting"], "its deadline is paused"


def test_it_starts_when_the_policy_allows_it() -> None:
    world = new(DENYING)
    world.settle()
    world.settings = SETTINGS
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]
    assert world.condition("Stalled")[0] == "False"


def test_an_exception_of_its_namespace_allows_it() -> None:
    limits = {"priorityClassNames": ["batch"]}
    world = new(with_policy(limits=limits, exceptions=[{"namespaces": ["team"], "limits": {}}]))
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]
    world = new(with_policy(exceptions=[{"namespaces": ["team"], "limits": limits}]))
    world.settle()
    assert world.children == {}


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN])
def test_a_newer_policy_ends_no_running_stage_but_the_next_one_waits(stage: Stage) -> None:
    world = started(stage, spec=make_spec(**HIGH))
    world.run_pod(f"demo-{stage.slug}-0")
    world.settle()
    world.settings = DENYING
    assert world.step().actions == ()
    assert world.condition("Stalled")[0] == "False"
    world.succeed(stage)
    world.settle()
    assert world.children == {}
    assert world.condition("Stalled") == ("True", "PolicyDenied")
    assert not any(isinstance(action, (CreateJob, CreateClaim)) for action in world.decide().actions)


def test_another_attempt_waits_for_the_policy() -> None:
    world = started(Stage.TRAIN, spec=make_spec(**HIGH))
    world.run_pod("demo-train-0")
    world.settle()
    world.settings = DENYING
    world.fail(Stage.TRAIN, "InternalError", code=1)
    world.settle()
    world.wait(600)
    world.settle()
    assert world.children == {}
    assert world.condition("Stalled") == ("True", "PolicyDenied")


def test_a_suspended_stage_is_not_resumed_against_the_policy() -> None:
    world = started(Stage.TRAIN, spec=make_spec(**HIGH))
    world.settle()
    world.job = replace(world.job, spec=make_spec(**HIGH, suspend=True))
    world.settle()
    assert world.children["demo-train-0"].suspended
    world.settings = DENYING
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
    world.job = replace(world.job, spec=make_spec(**HIGH))
    world.settle()
    assert world.children["demo-train-0"].suspended
    assert world.condition("Stalled") == ("True", "PolicyDenied")
    world.settings = SETTINGS
    world.settle()
    assert not world.children["demo-train-0"].suspended


def test_a_job_that_has_ended_is_not_judged() -> None:
    world = started(Stage.MERGE, spec=make_spec(**HIGH))
    world.succeed(Stage.MERGE)
    world.settle()
    world.settings = DENYING
    before = world.job.status
    world.settle()
    assert world.job.status == before
    assert world.condition("Succeeded")[0] == "True"
