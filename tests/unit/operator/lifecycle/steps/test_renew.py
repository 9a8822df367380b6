from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.decide import decide
from finetune_operator.settings import POD_DEFAULTS, Settings, TrainerSettings

from tests.support.operator import make_spec
from tests.support.world import World, started

LIMITED = Settings(
    trainer=TrainerSettings(
        image="registry.example/finetune/trainer:1",
        device="cpu",
        pod_defaults={**POD_DEFAULTS, "cpuLimit": "Request"},
    )
)


def limits(world: World, name: str) -> dict[str, Any]:
    (container,) = world.bodies[name]["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container["resources"]["limits"]
    return found


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_a_stage_that_a_quota_refuses_gets_the_new_defaults(stage: Stage) -> None:
    world = started(stage)
    world.settings = LIMITED
    world.settle()
    assert list(world.children) == [f"demo-{stage.slug}-1"]
    assert limits(world, f"demo-{stage.slug}-1")["cpu"] == "2"
    assert all(entry["stage"] != stage for entry in world.job.status.get("attempts", ()))
    before = dict(world.children)
    world.settle()
    assert world.children == before, "the new Job is not replaced again"


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_a_running_stage_keeps_its_job(stage: Stage) -> None:
    world = started(stage)
    world.run_pod(f"demo-{stage.slug}-0")
    world.settings = LIMITED
    world.settle()
    assert list(world.children) == [f"demo-{stage.slug}-0"]


@pytest.mark.parametrize(
    ("waiting", "replaced"),
    [
        (("ErrImagePull", "no such image"), True),
        (("Init:CrashLoopBackOff", "proxy"), True),
        (("ContainerCreating", ""), False),
        (("PodInitializing", ""), False),
    ],
)
def test_a_pod_on_a_node_is_replaced_only_if_it_cannot_start(
    waiting: tuple[str, str],
    replaced: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    world = started()
    world.run_pod("demo-prepare-0", phase="Pending", running=False, waiting=waiting)
    world.settings = LIMITED
    world.settle()
    assert list(world.children) == ["demo-prepare-1" if replaced else "demo-prepare-0"]


def test_a_pod_that_waits_for_a_node_is_replaced() -> None:
    world = started()
    world.run_pod("demo-prepare-0", phase="Pending", running=False, node="", unschedulable="0/1 nodes")
    world.settings = LIMITED
    world.settle()
    assert list(world.children) == ["demo-prepare-1"]


def test_a_job_is_replaced_only_after_a_fresh_read_of_its_pods() -> None:
    world = started()
    world.settings = LIMITED
    assert decide(world.observe(), LIMITED, world.now) is Need.FRESH_CHILDREN


def test_a_suspended_job_is_not_touched() -> None:
    world = started(spec=make_spec(suspend=True))
    world.settings = LIMITED
    world.settle()
    assert world.created == []


def test_a_train_that_waits_for_a_node_again_keeps_its_plan() -> None:
    """Its first pod was disrupted. The workspace may hold a checkpoint of the plan."""
    world = started(Stage.TRAIN)
    first = world.run_pod("demo-train-0")
    world.settle()
    del world.pods[first.uid]
    world.run_pod("demo-train-0", phase="Pending", running=False, node="", unschedulable="0/1 nodes")
    plan = world.job.status["plan"]["training"]
    world.settings = LIMITED
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    assert world.job.status["plan"]["training"] == plan
