from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.settings import Settings
from finetune_operator.sizing.cost.prices import CostSettings, parse_cost

from tests.support.operator import SETTINGS, make_failure, make_inventory, make_job, make_node, make_spec
from tests.support.world import World, started

PRICES = {"currency": "EUR", "prices": [{"product": "L4", "perGpuHour": "3.6"}]}
NODE = make_node("node1", "NVIDIA-L4", 23034)


def training(cost: CostSettings | None = None, **changes: Any) -> World:
    """A world whose TRAIN has a Job, on nodes with an L4."""
    world = World(
        job=make_job(**changes),
        inventory=make_inventory(NODE),
        settings=Settings(trainer=SETTINGS.trainer, cost=cost or parse_cost(PRICES)),
    )
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    return world


def usage(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.job.status.get("usage") or {}
    return found


def test_a_successful_attempt_uses_its_time_and_costs_its_price() -> None:
    world = training()
    world.wait(100)
    world.run_pod("demo-train-0")
    world.settle()
    assert world.job.status["stage"]["gpuTime"]["product"] == "NVIDIA L4"
    world.wait(1000)
    world.succeed(Stage.TRAIN)
    world.settle()
    entry = world.job.status["attempts"][-1]
    assert (entry["gpuSeconds"], entry["gpuProduct"]) == (1000, "NVIDIA L4")
    assert entry["tokensPerSecond"] == "100"
    assert usage(world) == {
        "gpuSeconds": 1000,
        "wastedGpuSeconds": 0,
        "product": "NVIDIA L4",
        "cost": {"amount": "1", "wasted": "0", "currency": "EUR"},
    }


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.MERGE])
def test_cpu_stages_use_no_gpu(stage: Stage) -> None:
    world = started(stage)
    before = usage(world)
    world.run_pod(f"demo-{stage.slug}-0")
    world.settle()
    world.wait(100)
    world.succeed(stage)
    world.settle()
    assert usage(world) == before


def test_a_failed_attempt_is_wasted_and_the_delay_until_the_next_one_is_free() -> None:
    world = training()
    world.run_pod("demo-train-0")
    world.wait(300)
    world.end_pod("demo-train-0", make_failure(Stage.TRAIN, "InternalError"), 69)
    world.settle()
    world.wait(600)
    world.settle()
    assert usage(world)["wastedGpuSeconds"] == usage(world)["gpuSeconds"] == 300
    world.run_pod("demo-train-1")
    world.wait(200)
    world.succeed(Stage.TRAIN, 1)
    world.settle()
    assert (usage(world)["gpuSeconds"], usage(world)["wastedGpuSeconds"]) == (500, 300)
    entries = [entry for entry in world.job.status["attempts"] if entry["stage"] == "Train"]
    assert sum(entry["gpuSeconds"] for entry in entries) == 500


def test_a_suspended_job_uses_nothing_while_it_is_suspended() -> None:
    world = training()
    pod = world.run_pod("demo-train-0")
    world.settle()
    world.wait(100)
    world.job = replace(world.job, spec={**world.job.spec, "suspend": True}, generation=2)
    world.settle()
    del world.pods[pod.uid]
    world.settle()
    world.wait(10_000)
    world.job = replace(world.job, spec={**world.job.spec, "suspend": False}, generation=3)
    world.settle()
    world.wait(10)
    name = next(iter(world.children))
    world.run_pod(name)
    world.settle()
    world.wait(50)
    world.succeed(Stage.TRAIN, world.children[name].attempt)
    world.settle()
    assert usage(world)["gpuSeconds"] == 150
    assert usage(world)["wastedGpuSeconds"] == 100


def test_a_job_that_ends_at_its_deadline_has_wasted_what_it_held() -> None:
    world = training(spec=make_spec(lifecycle={"deadlineSeconds": 500}))
    world.run_pod("demo-train-0")
    world.settle()
    world.wait(600)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")
    assert usage(world)["wastedGpuSeconds"] == 600
    assert "gpuTime" not in world.job.status["stage"]


def test_a_restarted_operator_goes_on_with_the_same_time_and_price() -> None:
    world = training()
    world.run_pod("demo-train-0")
    world.settle()
    world.settings = Settings(trainer=SETTINGS.trainer, cost=CostSettings())
    world.wait(1000)
    world.succeed(Stage.TRAIN)
    world.settle()
    assert usage(world)["cost"]["amount"] == "1"


def test_an_operator_that_missed_the_whole_pod_still_counts_it() -> None:
    world = training()
    world.run_pod("demo-train-0")
    world.wait(1000)
    world.succeed(Stage.TRAIN)
    world.wait(5000)
    world.settle()
    assert usage(world)["gpuSeconds"] == 1000


@pytest.mark.parametrize(
    "cost", [CostSettings(), parse_cost({**PRICES, "prices": [{"product": "A100", "perGpuHour": 1}]})]
)
def test_without_a_price_time_is_counted_and_said_to_have_none(cost: CostSettings) -> None:
    world = training(cost)
    world.run_pod("demo-train-0")
    world.wait(60)
    world.succeed(Stage.TRAIN)
    world.settle()
    assert usage(world)["unpricedGpuSeconds"] == 60
    assert "cost" not in usage(world)


def test_an_unreadable_node_has_the_only_product_of_the_plan() -> None:
    world = training()
    world.run_pod("demo-train-0", node="elsewhere")
    world.wait(60)
    world.succeed(Stage.TRAIN)
    world.settle()
    assert usage(world)["product"] == "NVIDIA L4"
