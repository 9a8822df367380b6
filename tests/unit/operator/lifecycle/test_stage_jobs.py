from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import PLACEMENT_ANNOTATION, WORK_STAGES, Stage
from finetune_operator.api.tracking import Tracking
from finetune_operator.lifecycle.pod_defaults import defaults_digest
from finetune_operator.lifecycle.sizing import plan_digest
from finetune_operator.lifecycle.stage_jobs import size_host
from finetune_operator.placement.storage import JobVolumes
from finetune_operator.settings import POD_DEFAULTS, Settings, TrainerSettings
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status.draft import StatusDraft

from tests.support.operator import NOW, SETTINGS, TRAINER, make_inventory, make_job, make_spec
from tests.support.world import World, prepared, started


def test_merge_gets_the_values_that_train_used() -> None:
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


def test_each_out_of_memory_kill_raises_computed_memory_but_not_the_users() -> None:
    draft = StatusDraft.begin(started(Stage.MERGE).job, NOW)
    computed = FineTuneJobSpec.parse(make_spec())
    first, second = (size_host(computed, draft, SETTINGS, kills).memory_bytes for kills in (0, 1))
    assert second >= first * 3 // 2
    given = FineTuneJobSpec.parse(make_spec(resources={"merge": {"memory": "1Gi"}}))
    assert size_host(given, draft, SETTINGS, 1).memory_bytes == 2**30


def test_prepare_has_a_size_before_anything_is_known_of_the_model() -> None:
    draft = StatusDraft.begin(make_job(), NOW)
    host = size_host(FineTuneJobSpec.parse(make_spec()), draft, SETTINGS, 0)
    assert host.memory_bytes > 0
    assert host.memory_reason


def test_a_train_job_carries_the_digest_of_its_plan_and_place() -> None:
    world = prepared()
    world.settle()
    child = world.children["demo-train-0"]
    assert len(child.placement) == 16
    assert PLACEMENT_ANNOTATION not in world.bodies["demo-prepare-0"]["metadata"]["annotations"]


def test_a_job_remembers_the_pod_defaults_and_keeps_the_given_annotations() -> None:
    own = {**POD_DEFAULTS, "objectAnnotations": {"example.com/why": "tuning"}}
    trainer = TrainerSettings(image="registry.example/finetune/trainer:1", device="cpu", pod_defaults=own)
    for stage in WORK_STAGES:
        world = started(stage)
        (plain,) = world.children.values()
        assert plain.pod_defaults == ""
        world.settings = Settings(trainer=trainer)
        world.settle()
        (child,) = world.children.values()
        found = world.bodies[child.name]["metadata"]["annotations"]
        assert found["finetune.dev/pod-defaults"] == defaults_digest(trainer, stage)
        assert found["example.com/why"] == "tuning"
        assert ("finetune.dev/placement" in found) == (stage is Stage.TRAIN)


def test_read_only_claims_reach_the_pod() -> None:
    world = World(volumes=JobVolumes(read_only_claims=("models",)))
    world.settle()
    volumes = world.bodies["demo-prepare-0"]["spec"]["template"]["spec"]["volumes"]
    sources = [item["persistentVolumeClaim"] for item in volumes if "persistentVolumeClaim" in item]
    assert {"claimName": "models", "readOnly": True} in sources


def _run_of(world: World, name: str) -> dict[str, Any]:
    annotations = world.bodies[name]["spec"]["template"]["metadata"]["annotations"]
    return dict(json.loads(annotations["finetune.dev/run"]))


@pytest.mark.parametrize(("version", "sent"), [("1.8", False), ("1.9", True)])
def test_train_and_merge_get_the_estimated_memory_for_the_report(version: str, *, sent: bool) -> None:
    world = World(job=make_job(), settings=SETTINGS)
    world.settle()
    world.succeed(Stage.PREPARE, version=version)
    world.settle()
    planned = world.job.status["plan"]["memory"]
    found = _run_of(world, "demo-train-0").get("memoryEstimate")
    assert (found is not None) == sent
    if found is not None:
        assert found.items() <= planned.items()
        assert found["peakBytes"] > 0
    world.succeed(Stage.TRAIN)
    world.settle()
    assert _run_of(world, "demo-merge-0").get("memoryEstimate") == found


@pytest.mark.parametrize(
    ("version", "image", "sent"),
    [("1.4", "", False), ("1.5", "", True), ("1.11", "", True), ("1.5", "registry.example/other:2", False)],
)
def test_train_gets_the_ladder_only_if_prepare_showed_that_its_trainer_reads_it(
    version: str, image: str, *, sent: bool
) -> None:
    """A trainer of contract 1.4 rejects the member. The chart may get another image between the stages."""
    world = World(job=make_job(), settings=Settings(trainer=TRAINER))
    world.settle()
    assert "ladder" not in _run_of(world, "demo-prepare-0")["training"]
    world.succeed(Stage.PREPARE, version=version)
    if image:
        world.settings = Settings(trainer=TRAINER.model_copy(update={"image": image}))
    world.settle()
    assert world.job.status["trainer"] == {"contractVersion": version, "image": TRAINER.image}
    # On a CPU there is one optimizer only.
    planned = [
        {"microBatchSize": rung["microBatchSize"], "gradientCheckpointing": rung["gradientCheckpointing"]}
        for rung in world.job.status["plan"]["ladder"]
    ]
    assert planned
    training = _run_of(world, "demo-train-0")["training"]
    assert training.get("ladder") == (planned if sent else None)
    world.succeed(Stage.TRAIN)
    world.settle()
    assert "ladder" not in _run_of(world, "demo-merge-0")["training"]


@pytest.mark.parametrize(("version", "sent"), [("1.5", False), ("1.6", True)])
@pytest.mark.parametrize("given", [None, 0.0005])
def test_a_trainer_that_reads_it_is_told_why_the_learning_rate_has_its_value(
    version: str, given: float | None, *, sent: bool
) -> None:
    world = World(
        job=make_job(make_spec(training={} if given is None else {"learningRate": given})),
        settings=Settings(trainer=TRAINER),
    )
    world.settle()
    assert "learningRateReason" not in _run_of(world, "demo-prepare-0")["training"]
    world.succeed(Stage.PREPARE, version=version)
    world.settle()
    world.succeed(Stage.TRAIN)
    world.settle()
    reasons = [
        entry["reason"] for entry in world.job.status["plan"]["choices"] if entry["name"] == "learningRate"
    ]
    expected = reasons if given is None else ["set by training.learningRate"]
    for name in ("demo-train-0", "demo-merge-0"):
        found = _run_of(world, name)["training"]
        assert ([found["learningRateReason"]] if "learningRateReason" in found else []) == (
            expected if sent else []
        )


@pytest.mark.parametrize(
    ("version", "image", "sent"),
    [("1.6", "", False), ("1.7", "", True), ("1.7", "registry.example/other:2", False)],
)
def test_train_is_told_its_optimizer_only_if_its_trainer_reads_that(
    version: str, image: str, *, sent: bool
) -> None:
    """A trainer of contract 1.6 gets what an operator of its time has sent: it rejects the member."""
    on_gpu = TRAINER.model_copy(update={"device": "cuda"})
    world = World(job=make_job(), settings=Settings(trainer=on_gpu))
    world.settle()
    assert "optimizer" not in _run_of(world, "demo-prepare-0")["training"]
    world.succeed(Stage.PREPARE, version=version)
    if image:
        world.settings = Settings(trainer=on_gpu.model_copy(update={"image": image}))
    world.settle()
    plan, training = world.job.status["plan"], _run_of(world, "demo-train-0")["training"]
    assert plan["training"]["optimizer"] == ("AdamW" if sent else "PagedAdamW8Bit")
    assert training.get("optimizer") == ("AdamW" if sent else None)
    assert plan["training"]["weights"] == ("Dequantized" if sent else "Quantized")
    assert training.get("weights") == ("Dequantized" if sent else None)
    rungs = [rung.get("optimizer") for rung in training.get("ladder", ())]
    if sent:
        assert {"AdamW8Bit", None} <= set(rungs)
        assert rungs[-1] is None
        assert plan["ladder"][-1]["optimizer"] == "PagedAdamW8Bit"
    else:
        assert set(rungs) <= {None}
        assert not any("weights" in rung for rung in training.get("ladder", ()))
    world.succeed(Stage.TRAIN)
    world.settle()
    assert "optimizer" not in _run_of(world, "demo-merge-0")["training"]


def test_later_attempts_keep_the_optimizer_and_that_of_an_earlier_operator() -> None:
    """A checkpoint holds the states of an optimizer. An earlier operator recorded none."""
    for older in (False, True):
        world = World(
            job=make_job(), settings=Settings(trainer=TRAINER.model_copy(update={"device": "cuda"}))
        )
        world.settle()
        world.succeed(Stage.PREPARE, version="1.7")
        world.settle()
        world.run_pod("demo-train-0")
        world.settle()
        plan = world.job.status["plan"]
        kept = dict(plan["training"])
        assert (kept["optimizer"], kept["weights"]) == ("AdamW", "Dequantized")
        if older:
            kept = {name: kept[name] for name in kept if name not in {"optimizer", "weights"}}
        world.job = replace(world.job, status={**world.job.status, "plan": {**plan, "training": kept}})
        world.fail(Stage.TRAIN, "InternalError", code=69)
        world.settle()
        world.wait(600)
        world.settle()
        found = _run_of(world, "demo-train-1")["training"]
        expected = (None, None) if older else ("AdamW", "Dequantized")
        assert (found.get("optimizer"), found.get("weights")) == expected


def test_a_plan_without_an_optimizer_has_the_digest_of_an_earlier_operator() -> None:
    """Otherwise an upgrade of the operator would replace the Jobs that wait for a GPU."""
    plan = make_plan(FineTuneJobSpec.parse(make_spec()), "cuda")
    old = hashlib.sha256(
        json.dumps([plan.micro_batch_size, plan.gradient_checkpointing, {}], sort_keys=True).encode()
    ).hexdigest()[:16]
    assert plan_digest(plan, {}, "cuda") == old
    assert plan_digest(replace(plan, optimizer="AdamW"), {}, "cuda") != old
    assert plan_digest(replace(plan, weights="Dequantized"), {}, "cuda") != old
    assert plan_digest(replace(plan, optimizer="AdamW"), {}, "cpu") == old


def test_a_job_whose_prepare_ended_under_an_earlier_operator_gets_no_ladder() -> None:
    world = started(Stage.TRAIN)
    status = {name: value for name, value in world.job.status.items() if name != "trainer"}
    world.job = replace(world.job, status=status)
    world.fail(Stage.TRAIN, "InternalError", code=69)
    world.settle()
    world.wait(600)
    world.settle()
    assert world.job.status["plan"]["ladder"]
    assert "ladder" not in _run_of(world, "demo-train-1")["training"]


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [({}, True), ({"forbidPrivateAddresses": False}, True), ({"forbidPrivateAddresses": True}, False)],
)
def test_a_policy_can_forbid_the_private_addresses_that_the_chart_allows(
    limits: dict[str, Any], *, allowed: bool
) -> None:
    trainer = {"image": "trainer:1", "limits": {"allowPrivateAddresses": True}}
    for policy in ({"limits": limits}, {"exceptions": [{"namespaces": ["team"], "limits": limits}]}):
        world = World(settings=Settings.model_validate({"trainer": trainer, "policy": policy}))
        world.settle()
        template = world.bodies["demo-prepare-0"]["spec"]["template"]
        run = json.loads(template["metadata"]["annotations"]["finetune.dev/run"])
        assert run["limits"]["allowPrivateAddresses"] is allowed


TRACKER = {"mlflow": {"uri": "http://mlflow.ml:5000"}}


def _merge_with_trackers(version: str, own: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """Return the run spec and the containers of MERGE, whose trainer speaks this version of the contract."""
    trainer = TRAINER.model_copy(update={"tracking": Tracking.model_validate(TRACKER)})
    spec = make_spec() if own is None else make_spec(tracking=own)
    world = World(job=make_job(spec), settings=Settings(trainer=trainer))
    world.settle()
    world.succeed(Stage.PREPARE, version=version)
    world.settle()
    world.run_pod("demo-train-0")
    world.succeed(Stage.TRAIN, version=version)
    world.settle()
    pod = world.bodies["demo-merge-0"]["spec"]["template"]["spec"]
    names = [each["name"] for each in [*pod.get("initContainers", ()), *pod["containers"]]]
    return _run_of(world, "demo-merge-0"), names


@pytest.mark.parametrize(("version", "told"), [("1.9", True), ("1.8", False)])
def test_the_administrators_trackers_are_told_to_a_trainer_that_knows_them(
    version: str, *, told: bool
) -> None:
    run, names = _merge_with_trackers(version, None)
    assert ("tracking" in run) == told
    assert names == (["merge", "trainer"] if told else ["trainer"])


def test_a_jobs_own_trackers_are_told_to_every_trainer() -> None:
    """One that does not know them rejects the run spec, because the job asks for them."""
    run, names = _merge_with_trackers("1.8", {"mlflow": {"uri": "https://mlflow.example.com"}})
    assert run["tracking"] == {"mlflow": {"uri": "https://mlflow.example.com", "experiment": "team"}}
    assert names == ["merge", "trainer"]


def test_a_job_without_trackers_does_not_get_the_administrators() -> None:
    run, names = _merge_with_trackers("1.9", {})
    assert "tracking" not in run
    assert names == ["trainer"]
