from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.settings import Settings, TrainerSettings
from finetune_operator.sizing.cost.prices import parse_cost
from finetune_operator.sizing.gpus.profiles import GpuProfile

from tests.support.operator import SETTINGS, make_failure, make_inventory, make_node, make_spec
from tests.support.world import A100, SMALL, World, prepared, stalled


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


def test_a_gpu_profile_is_selected_by_its_labels_also_if_no_node_can_be_read() -> None:
    profile = GpuProfile(name="l4-pool", product="NVIDIA L4", labels={"pool": "l4"})
    world = prepared()
    world.inventory = make_inventory(profiles=(profile,), problem="nodes cannot be listed")
    world.settle()
    required = world.bodies["demo-train-0"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    keys = {item["key"] for term in required["nodeSelectorTerms"] for item in term["matchExpressions"]}
    assert keys == {"pool"}
    world.run_pod("demo-train-0", phase="Pending", running=False, node="", unschedulable="0/1 nodes")
    world.settle()
    assert world.condition("Reconciling") == ("True", "WaitingForGpu")
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    assert entry["message"].endswith("nodes cannot be listed"), "it says what it could not read"


def test_later_attempts_keep_the_plan_of_the_first_that_had_a_node() -> None:
    world = prepared()
    world.settle()
    first, ladder = (world.job.status["plan"][name] for name in ("training", "ladder"))
    world.run_pod("demo-train-0")
    world.settle()
    interrupted = make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted")
    world.end_pod("demo-train-0", interrupted, 75)
    trainer = {"contractVersion": "1.5", "image": world.settings.trainer.image}
    world.job = replace(world.job, status={**world.job.status, "trainer": trainer})
    # This run cannot move to a GPU on which only a smaller micro-batch fits.
    world.inventory = make_inventory(make_node("tiny", "NVIDIA-Tiny", 900))
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"
    world.inventory = make_inventory(A100)
    world.settle()
    assert world.job.status["plan"]["training"] == first
    assert world.job.status["plan"]["ladder"] == ladder
    run = json.loads(
        world.bodies["demo-train-1"]["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run"]
    )
    assert run["training"]["microBatchSize"] == first["microBatchSize"]
    assert run["training"]["ladder"] == [as_on_a_cpu(rung) for rung in ladder]


def as_on_a_cpu(rung: dict[str, Any]) -> dict[str, Any]:
    """A rung as a CPU gets it, which has one optimizer and packed weights only."""
    assert (rung["optimizer"], rung["weights"]) == ("AdamW", "Quantized")
    return {name: rung[name] for name in ("microBatchSize", "gradientCheckpointing")}


def rate_of(world: World, pod: str) -> float:
    body = world.bodies[pod]["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run"]
    return float(json.loads(body)["training"]["learningRate"])


def test_train_gets_the_chosen_learning_rate_and_the_status_says_why() -> None:
    world = prepared()
    world.settle()
    plan = world.job.status["plan"]
    (choice,) = (choice for choice in plan["choices"] if choice["name"] == "learningRate")
    assert rate_of(world, "demo-train-0") == float(choice["value"])
    assert plan["training"]["learningRate"] == choice["value"] != "0.0002"
    assert "LoRA Without Regret" in choice["reason"]
    assert "warnings" not in plan


def test_later_attempts_and_merge_keep_the_rate_of_the_first_attempt() -> None:
    """A checkpoint was made with it, so another version's rule must not change it."""
    world = prepared()
    world.settle()
    world.run_pod("demo-train-0")
    world.settle()
    plan = json.loads(json.dumps(world.job.status["plan"]))
    plan["training"]["learningRate"] = "0.00077"
    world.job = replace(world.job, status={**world.job.status, "plan": plan})
    interrupted = make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted")
    world.end_pod("demo-train-0", interrupted, 75)
    world.settle()
    assert rate_of(world, "demo-train-1") == 0.00077
    assert world.job.status["plan"]["training"]["learningRate"] == "0.00077"


def test_a_job_that_an_older_operator_planned_keeps_the_rate_of_its_spec() -> None:
    """Its plan records no rate, and its spec has the old default."""
    world = prepared(spec=make_spec(training={"learningRate": 0.0002}))
    world.settle()
    world.run_pod("demo-train-0")
    world.settle()
    plan = json.loads(json.dumps(world.job.status["plan"]))
    del plan["training"]["learningRate"]
    world.job = replace(world.job, status={**world.job.status, "plan": plan})
    interrupted = make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted")
    world.end_pod("demo-train-0", interrupted, 75)
    world.settle()
    assert rate_of(world, "demo-train-1") == 0.0002
    assert world.job.status["plan"] == plan


def test_a_high_learning_rate_is_a_warning_from_the_first_status_on() -> None:
    world = prepared(spec=make_spec(training={"learningRate": 0.01}))
    assert "above 0.003" in world.job.status["plan"]["warnings"][0]
    world.settle()
    assert "above 0.003" in world.job.status["plan"]["warnings"][0]
    assert rate_of(world, "demo-train-0") == 0.01


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


def test_a_gpu_that_cannot_run_the_image_is_reported() -> None:
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


def with_defaults(**blocks: Any) -> Settings:
    return Settings(trainer=TrainerSettings(image="i", device="cpu", pod_defaults=blocks))


def test_a_gpu_on_which_train_may_not_run_does_not_count() -> None:
    big = make_node("big", "NVIDIA-A100-SXM4-80GB", 81920, labels={"pool": "tuning"})
    world = prepared()
    world.settings = with_defaults(train={"nodeSelector": {"pool": "tuning"}})
    world.inventory = make_inventory(SMALL, big)
    world.settle()
    assert world.job.status["plan"]["gpu"]["offers"] == ["NVIDIA A100 80GB"]
    assert world.bodies["demo-train-0"]["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "tuning"}
    world = prepared()
    world.settings = with_defaults(train={"nodeSelector": {"pool": "tuning"}})
    world.inventory = make_inventory(SMALL)
    world.settle()
    assert world.condition("Stalled") == ("True", "DoesNotFit")
    (stalled_condition,) = (item for item in world.job.status["conditions"] if item["type"] == "Stalled")
    assert "trainer.podDefaults.train.nodeSelector requires pool=tuning" in stalled_condition["message"]


def test_a_taint_that_the_charts_defaults_tolerate_does_not_exclude_a_gpu() -> None:
    taint = {"key": "team", "value": "ml", "effect": "NoSchedule"}
    tainted = make_node("gpu1", taints=(taint,))
    for tolerations, admitted in (([], False), ([{"key": "team", "operator": "Exists"}], True)):
        world = prepared()
        world.settings = with_defaults(tolerations=tolerations)
        world.inventory = make_inventory(tainted)
        world.settle()
        assert ("demo-train-0" in world.children) == admitted
        assert world.condition("Stalled") == (
            ("False", "Progressing") if admitted else ("True", "DoesNotFit")
        )


def test_terms_of_the_job_narrow_the_affinity_of_the_gpus_that_fit() -> None:
    fast = make_node("fast", labels={"disk": "nvme"})
    spec = make_spec(
        podTemplate={"nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}
    )
    world = prepared(spec=spec)
    world.inventory = make_inventory(SMALL, fast)
    world.settle()
    pod = world.bodies["demo-train-0"]["spec"]["template"]["spec"]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert terms
    assert all({"key": "disk", "operator": "Exists"} in term["matchExpressions"] for term in terms)
    assert all(len(term["matchExpressions"]) > 1 for term in terms), "the GPU is still required"


PRICED = Settings(
    trainer=SETTINGS.trainer,
    cost=parse_cost({"currency": "EUR", "prices": [{"perGpuHour": 1}]}),
)


def test_the_status_has_time_and_cost_before_the_gpu() -> None:
    world = World(settings=PRICED)
    world.settle()
    assert "duration" not in world.job.status["plan"], "the rows are not known yet"
    world.succeed(Stage.PREPARE)
    world.settle()
    plan = world.job.status["plan"]
    assert (
        plan["duration"]["lowSeconds"] < plan["duration"]["expectedSeconds"] < plan["duration"]["highSeconds"]
    )
    assert plan["cost"]["currency"] == "EUR"
    assert sum(part["seconds"] for part in plan["duration"]["parts"]) == pytest.approx(
        plan["duration"]["expectedSeconds"], abs=4
    )


def test_a_plan_keeps_its_price_once_a_pod_has_had_a_node() -> None:
    world = World(settings=PRICED)
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    priced = world.job.status["plan"]["cost"]
    dearer = parse_cost({"currency": "EUR", "prices": [{"perGpuHour": 5}]})
    world.settings = Settings(trainer=SETTINGS.trainer, cost=dearer)
    world.settle()
    assert float(world.job.status["plan"]["cost"]["expected"]) == pytest.approx(
        5 * float(priced["expected"]), rel=1e-3
    )
    world.run_pod("demo-train-0")
    world.settle()
    world.settings = PRICED
    world.wait(10)
    world.fail(Stage.TRAIN, "InternalError", code=69)
    world.settle()
    assert float(world.job.status["plan"]["cost"]["expected"]) > 2 * float(priced["expected"])


def test_a_job_on_a_cpu_has_a_wide_guess() -> None:
    world = World(settings=Settings(trainer=SETTINGS.trainer.model_copy(update={"device": "cpu"})))
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    plan = world.job.status["plan"]
    assert plan["duration"]["source"] == "Guessed"
    assert plan["cost"] == {"reason": "the chart's cost.prices is empty"}
