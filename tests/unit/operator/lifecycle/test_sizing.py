"""The lifecycle where GPUs are too small, unknown, busy, or come and go."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateJob, SuspendJob
from finetune_operator.settings import Settings
from finetune_operator.sizing.gpus.profiles import GpuProfile

from tests.support.operator import (
    CONFIG,
    PREPARE,
    TRAIN,
    TRAINER,
    World,
    make_failure,
    make_inventory,
    make_job,
    make_node,
    make_progress,
    make_spec,
)

LARGE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""70 billion parameters: half a byte each does not go into 24 GiB."""
A100 = make_node("big", "NVIDIA-A100-SXM4-80GB", 81920)
SMALL = make_node("small", "NVIDIA-L4", 23034)


def preparing(config: dict[str, Any], **changes: Any) -> World:
    """A world whose PREPARE runs and has told this config."""
    world = World(job=make_job(**changes))
    world.settle()
    world.run_pod("demo-prepare-0")
    world.progress = make_progress(Stage.PREPARE, activity="ProvingRows", config=config)
    return world


def prepared(config: dict[str, Any] = CONFIG, longest: int = 60, **changes: Any) -> World:
    """A world whose PREPARE has just ended with this config and longest row."""
    world = World(job=make_job(**changes))
    world.settle()
    report = {
        "dataset": {**PREPARE["dataset"], "longestExample": longest},
        "model": {**PREPARE["model"], "config": config},
    }
    world.succeed(Stage.PREPARE, prepare=report)
    return world


def stalled(world: World) -> tuple[str, ...]:
    """Status of the three conditions that say how a job stands, and the reason that they share."""
    reasons = {world.condition(kind)[1] for kind in ("Succeeded", "Reconciling", "Stalled")}
    assert len(reasons) == 1
    return (*(world.condition(kind)[0] for kind in ("Succeeded", "Reconciling", "Stalled")), reasons.pop())


def test_a_hopeless_model_stops_prepare_before_its_weights_are_there_and_a_larger_gpu_lets_it_go_on() -> None:
    world = preparing(LARGE)
    decision = world.step()
    child = world.children["demo-prepare-0"]
    assert decision.actions == (SuspendJob(child.name, child.uid, suspend=True),)
    assert stalled(world) == ("Unknown", "False", "True", "DoesNotFit")
    assert world.job.status["phase"] == "Stalled"
    assert json.loads(world.job.status["model"]["config"]) == LARGE
    world.progress, world.pods = None, {}
    world.settle()
    assert stalled(world)[3] == "DoesNotFit", "the config outlives the trainer that told it"

    world.inventory = make_inventory(SMALL, A100)
    world.settle()
    assert not world.children["demo-prepare-0"].suspended
    assert world.condition("Stalled") == ("False", "Progressing")
    assert world.created == ["demo-prepare-0"]


def test_before_the_config_is_known_nothing_is_refused() -> None:
    world = World(inventory=make_inventory())
    world.settle()
    assert list(world.children) == ["demo-prepare-0"]
    assert world.condition("Stalled")[0] == "False"


def test_a_model_whose_size_is_unknown_fails_at_once() -> None:
    world = preparing({"model_type": "mixtral", "num_local_experts": 8})
    world.settle()
    assert world.condition("Succeeded") == ("False", "ModelSizeUnknown")
    assert world.children == {}


def test_data_that_makes_the_run_too_large_stalls_it_without_a_job_of_train() -> None:
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


def test_the_same_data_on_a_gpu_that_is_large_enough_runs() -> None:
    world = prepared()
    world.inventory = make_inventory(make_node("tiny", "NVIDIA-Tiny", 600))
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"
    world.inventory = make_inventory(make_node("tiny", "NVIDIA-Tiny", 600), SMALL)
    world.settle()
    assert list(world.children) == ["demo-train-0"]
    assert world.condition("Reconciling") == ("True", "Training")


def test_the_plan_and_the_pod_name_the_gpus_that_fit() -> None:
    world = prepared()
    world.inventory = make_inventory(SMALL, A100, make_node("tiny", "NVIDIA-Tiny", 600))
    world.settle()
    plan = world.job.status["plan"]
    assert plan["gpu"]["product"] == "NVIDIA L4"
    assert plan["gpu"]["offers"] == ["NVIDIA L4", "NVIDIA A100 80GB"]
    assert plan["training"]["sequenceLength"] == 60
    training, memory = plan["training"], plan["memory"]
    assert training["microBatchSize"] * training["gradientAccumulationSteps"] == 16
    assert memory["peakBytes"] < memory["deviceBytes"] <= plan["gpu"]["usableBytes"]
    peak = [term["bytes"] for term in memory["terms"] if term["phase"] == memory["bottleneck"]]
    assert sum(peak) == memory["peakBytes"]
    body = world.bodies["demo-train-0"]
    pod = body["spec"]["template"]["spec"]
    terms = json.dumps(pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"])
    assert "NVIDIA-L4" in terms
    assert "NVIDIA-A100-SXM4-80GB" in terms
    assert "NVIDIA-Tiny" not in terms
    run = json.loads(body["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run"])
    assert run["training"]["microBatchSize"] == training["microBatchSize"]


def test_merge_is_told_the_values_that_train_used() -> None:
    world = prepared()
    world.settle()
    used = world.job.status["plan"]["training"]["microBatchSize"]
    world.run_pod("demo-train-0")
    world.inventory = make_inventory()
    world.succeed(Stage.TRAIN)
    world.settle()
    template = world.bodies["demo-merge-0"]["spec"]["template"]
    run = json.loads(template["metadata"]["annotations"]["finetune.dev/run"])
    assert run["training"]["microBatchSize"] == used
    assert "affinity" not in template["spec"]


def test_a_busy_gpu_is_waited_for_without_burning_the_deadline() -> None:
    world = prepared(spec=make_spec(lifecycle={"deadlineSeconds": 600}))
    world.settle()
    world.wait(100)
    pod = world.run_pod(
        "demo-train-0", phase="Pending", running=False, node="", unschedulable="0/3 nodes are available"
    )
    world.settle()
    assert world.condition("Reconciling") == ("True", "WaitingForGpu")
    assert world.condition("Stalled")[0] == "False"
    message = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")[
        "message"
    ]
    assert "NVIDIA L4" in message
    assert "0/3 nodes are available" in message
    assert world.decide().requeue_time is None
    world.wait(5000)
    world.settle()
    assert world.condition("Succeeded") == ("Unknown", "WaitingForGpu")
    world.pods[pod.uid] = replace(pod, phase="Running", running=True, node="gpu1", unschedulable=None)
    world.settle()
    assert world.condition("Reconciling") == ("True", "Training")
    assert world.job.status["waiting"] == {"totalSeconds": 5000}
    assert world.decide().requeue_time == world.now + timedelta(seconds=500)
    world.wait(501)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")


def test_a_stalled_job_burns_no_deadline_either() -> None:
    world = prepared(spec=make_spec(lifecycle={"deadlineSeconds": 600}))
    world.inventory = make_inventory()
    world.settle()
    world.wait(10_000)
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"
    world.inventory = make_inventory(SMALL)
    world.settle()
    assert list(world.children) == ["demo-train-0"]


def test_the_catalogue_is_waited_for_by_its_own_labels() -> None:
    profile = GpuProfile(name="l4-pool", product="NVIDIA L4", labels={"pool": "l4"})
    world = prepared()
    world.inventory = make_inventory(profiles=(profile,))
    world.settle()
    required = world.bodies["demo-train-0"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    keys = {item["key"] for term in required["nodeSelectorTerms"] for item in term["matchExpressions"]}
    assert keys == {"pool"}
    world.run_pod("demo-train-0", phase="Pending", running=False, node="", unschedulable="0/1 nodes")
    world.settle()
    assert world.condition("Reconciling") == ("True", "WaitingForGpu")


@pytest.mark.parametrize("gone", [True, False])
def test_a_waiting_job_is_taken_back_when_no_gpu_fits_any_more(*, gone: bool) -> None:
    world = prepared()
    world.settle()
    world.run_pod("demo-train-0", phase="Pending", running=False, node="", unschedulable="0/3 nodes")
    world.settle()
    world.inventory = make_inventory() if gone else make_inventory(make_node("tiny", "NVIDIA-Tiny", 600))
    world.settle()
    assert world.children == {}
    assert world.pods == {}
    assert stalled(world)[3] == "DoesNotFit"
    assert [entry["stage"] for entry in world.job.status["attempts"]] == ["Prepare"]
    world.inventory = make_inventory(SMALL)
    world.settle()
    assert list(world.children) == ["demo-train-1"]


def test_a_waiting_job_is_made_anew_for_a_product_that_joins() -> None:
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


def test_a_running_job_is_left_alone_when_nodes_change() -> None:
    world = prepared()
    world.settle()
    world.run_pod("demo-train-0")
    world.settle()
    world.inventory = make_inventory()
    assert world.step().actions == ()
    assert world.condition("Reconciling") == ("True", "Training")


def test_later_attempts_keep_the_plan_of_the_first_that_had_a_node() -> None:
    world = prepared()
    world.settle()
    first = world.job.status["plan"]["training"]
    world.run_pod("demo-train-0")
    world.settle()
    interrupted = make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted")
    world.end_pod("demo-train-0", interrupted, 75)
    # A GPU on which only a smaller micro-batch would fit is no place for this run any more.
    world.inventory = make_inventory(make_node("tiny", "NVIDIA-Tiny", 900))
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"
    world.inventory = make_inventory(A100)
    world.settle()
    assert world.job.status["plan"]["training"] == first
    run = json.loads(
        world.bodies["demo-train-1"]["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run"]
    )
    assert run["training"]["microBatchSize"] == first["microBatchSize"]


def test_suspending_a_stalled_job_suspends_it_and_resuming_stalls_it_again() -> None:
    world = prepared()
    world.inventory = make_inventory()
    world.settle()
    world.job = replace(world.job, spec=make_spec(suspend=True))
    world.settle()
    assert world.condition("Suspended")[0] == "True"
    assert world.condition("Stalled")[0] == "False"
    assert "waiting" not in world.job.status
    world.job = replace(world.job, spec=make_spec())
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"


def test_gpus_of_unknown_size_and_unreadable_nodes_are_never_called_too_small() -> None:
    unlabelled = make_node("dark")
    unlabelled = replace(unlabelled, labels={"kubernetes.io/hostname": "dark"})
    world = prepared()
    world.inventory = make_inventory(unlabelled)
    world.settle()
    assert stalled(world)[3] == "GpuMemoryUnknown"
    world.inventory = make_inventory(problem="the operator must be allowed to list nodes")
    world.settle()
    assert stalled(world)[3] == "GpuMemoryUnknown"
    message = world.job.status["conditions"][0]["message"]
    assert message.startswith("the operator must be allowed to list nodes")


def test_a_gpu_that_cannot_run_the_image_is_named() -> None:
    old = make_node(
        "old",
        "Tesla-T4",
        15360,
        labels={"nvidia.com/gpu.compute.major": "7", "nvidia.com/gpu.compute.minor": "5"},
    )
    world = prepared()
    world.inventory = make_inventory(old)
    world.settle()
    assert stalled(world)[3] == "GpuNotSupported"


def test_estimate_and_measurement_stand_beside_each_other() -> None:
    measured = {"allocatedBytes": 10**9, "reservedBytes": 2 * 10**9, "deviceBytes": None}
    world = World(job=make_job(), settings=Settings(trainer=TRAINER))
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    world.succeed(Stage.TRAIN, train={**TRAIN, "memory": measured})
    world.settle()
    memory = world.job.status["plan"]["memory"]
    assert world.job.status["attempts"][1]["memory"] == {
        "estimatedBytes": memory["peakBytes"],
        "estimatedDeviceBytes": memory["deviceBytes"],
        "allocatedBytes": 10**9,
        "reservedBytes": 2 * 10**9,
    }
