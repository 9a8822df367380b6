from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateJob, SuspendJob

from tests.support.operator import make_inventory, make_node, make_spec
from tests.support.world import A100, LARGE, SMALL, World, prepared, preparing, stalled, started


def test_a_model_too_large_for_all_gpus_stops_prepare_until_a_larger_gpu_joins() -> None:
    world = preparing(LARGE)
    child = world.children["demo-prepare-0"]
    decision = world.step()
    assert decision.actions == (SuspendJob(child.name, child.uid, True, child.resource_version),)
    assert stalled(world) == ("Unknown", "False", "True", "DoesNotFit")
    assert world.job.status["phase"] == "Stalled"
    assert json.loads(world.job.status["model"]["config"]) == LARGE
    world.progress, world.pods = None, {}
    world.settle()
    assert stalled(world)[3] == "DoesNotFit", "the config outlives the trainer that reported it"

    world.inventory = make_inventory(SMALL, A100)
    world.settle()
    assert not world.children["demo-prepare-0"].suspended
    assert world.condition("Stalled") == ("False", "Progressing")
    assert world.created == ["demo-prepare-0"]


@pytest.mark.parametrize("queue", [{}, {"queueName": "gpus"}])
def test_a_training_that_waits_again_keeps_its_plan_when_the_gpus_change(queue: dict[str, str]) -> None:
    world = started(Stage.TRAIN, spec=make_spec(**queue))
    world.run_pod("demo-train-0")
    world.children["demo-train-0"] = replace(world.children["demo-train-0"], suspended=False)
    world.settle()
    plan = world.job.status["plan"]["training"]
    world.pods.clear()
    world.children["demo-train-0"] = replace(world.children["demo-train-0"], suspended=True)
    world.inventory = make_inventory(SMALL, A100)
    world.settle()
    assert list(world.children) == ["demo-train-1"]
    entry = world.job.status["attempts"][-1]
    assert (entry["outcome"], entry["reason"], entry["node"]) == ("Interrupted", "Disrupted", "node1")
    world.inventory = make_inventory(make_node("b200", "NVIDIA-B200", 183359))
    world.settle()
    assert world.job.status["plan"]["training"] == plan, "the workspace may hold a checkpoint of this plan"


def test_no_job_is_rejected_before_its_config_is_known() -> None:
    world = World(inventory=make_inventory())
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]
    assert world.condition("Stalled")[0] == "False"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "nobody_knows"}, "ModelSizeUnknown"),
        ({"model_type": "internvl_chat", "text_config": {"model_type": "qwen2"}}, "UnsupportedModel"),
        ({"model_type": "falcon"}, "UnsupportedModel"),
    ],
)
def test_a_model_of_unknown_size_or_that_the_trainer_refuses_fails_at_once(
    config: dict[str, Any], reason: str
) -> None:
    world = preparing(config)
    world.settle()
    assert world.condition("Succeeded") == ("False", reason)
    assert world.children == {}


def test_data_that_makes_the_run_too_large_stalls_it_before_train_is_created() -> None:
    spec = make_spec(
        training={"microBatchSize": 16, "gradientCheckpointing": "Forbid", "maximumLength": 32768}
    )
    world = prepared(longest=32768, spec=spec)
    decision = world.step()
    assert stalled(world) == ("Unknown", "False", "True", "DoesNotFit")
    assert not any(isinstance(action, CreateJob) for action in decision.actions)
    assert "Gi" in {entry["type"]: entry for entry in world.job.status["conditions"]}["Stalled"]["message"]
    world.settle()
    assert world.created == ["demo-prepare-0"]
    assert world.children == {}


def test_the_same_data_runs_on_a_gpu_that_is_large_enough() -> None:
    world = prepared()
    world.inventory = make_inventory(make_node("tiny", "NVIDIA-Tiny", 600))
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"
    world.inventory = make_inventory(make_node("tiny", "NVIDIA-Tiny", 600), SMALL)
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    assert world.condition("Reconciling") == ("True", "Training")


@pytest.mark.parametrize("deleted", [True, False])
def test_a_waiting_train_job_is_deleted_when_no_gpu_fits_any_more(*, deleted: bool) -> None:
    world = prepared()
    world.settle()
    world.run_pod("demo-train-0", phase="Pending", running=False, node="", unschedulable="0/3 nodes")
    world.settle()
    world.inventory = make_inventory() if deleted else make_inventory(make_node("tiny", "NVIDIA-Tiny", 600))
    world.settle()
    assert world.children == {}
    assert world.pods == {}
    assert stalled(world)[3] == "DoesNotFit"
    assert [entry["stage"] for entry in world.job.status["attempts"]] == ["Prepare"]
    world.inventory = make_inventory(SMALL)
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_a_waiting_train_job_is_replaced_when_another_product_joins() -> None:
    world = prepared()
    world.settle()
    world.run_pod("demo-train-0", phase="Pending", running=False, node="", unschedulable="0/3 nodes")
    world.inventory = make_inventory(SMALL, make_node("other", "NVIDIA-A10", 23028))
    world.settle()
    assert list(world.children) == ["demo-train-1"]
    assert "NVIDIA-A10" in json.dumps(world.bodies["demo-train-1"]["spec"]["template"]["spec"]["affinity"])


def test_another_node_of_the_same_product_changes_nothing() -> None:
    world = prepared()
    world.settle()
    world.run_pod("demo-train-0", phase="Pending", running=False, node="", unschedulable="0/3 nodes")
    world.settle()
    world.inventory = make_inventory(make_node(), make_node("gpu2"))
    world.settle()
    assert list(world.children) == ["demo-train-0"]


def test_a_running_train_job_continues_when_nodes_change() -> None:
    world = prepared()
    world.settle()
    world.run_pod("demo-train-0")
    world.settle()
    world.inventory = make_inventory()
    assert world.step().actions == ()
    assert world.condition("Reconciling") == ("True", "Training")
