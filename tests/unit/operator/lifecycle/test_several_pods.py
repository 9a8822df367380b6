"""A job whose TRAIN runs in two pods, from the claim to the end of the attempt."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateClaim, SuspendJob
from finetune_operator.observed.movement import answered
from finetune_operator.observed.observation import Pod
from finetune_operator.placement.storage import JobVolumes, MountedClaim

from tests.support.operator import (
    SECTIONS,
    SETTINGS,
    make_failure,
    make_inventory,
    make_job,
    make_node,
    make_progress,
    make_result,
    make_spec,
)
from tests.support.sizing_jobs import CONFIGS
from tests.support.world import World

TWO = {"gpus": 2, "gpusPerNode": 1}
TRAIN = "demo-train-0"
SHARED = JobVolumes(workspace=MountedClaim("demo-workspace", "claim", ("ReadWriteMany",)))


def training(resources: dict[str, Any] = TWO, **more: Any) -> World:
    """A world with two GPU nodes whose PREPARE has just succeeded, so that the Job of TRAIN exists."""
    inventory = make_inventory(make_node("gpu1"), make_node("gpu2"))
    world = World(**{"job": make_job(make_spec(resources=resources)), "inventory": inventory, **more})
    world.volumes = SHARED
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    return world


def with_pods(world: World) -> tuple[Pod, Pod]:
    """Start both pods; return the first and the second."""
    found = [world.run_pod(TRAIN, index=index, node=f"gpu{index + 1}") for index in (0, 1)]
    world.settle()
    return found[0], found[1]


def end(world: World, pod: Pod, document: dict[str, Any] | str, code: int, **changes: Any) -> None:
    """End one of the pods, which `end_pod` finds as the newest that runs."""
    others = {uid: each for uid, each in world.pods.items() if uid != pod.uid}
    world.pods = {pod.uid: world.pods[pod.uid]}
    world.end_pod(TRAIN, document, code, **changes)
    world.pods |= others


def attempt(world: World) -> tuple[str, str]:
    entry = world.job.status["attempts"][-1]
    return entry["outcome"], entry.get("reason", "")


def interrupted() -> dict[str, Any]:
    return make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted")


def test_train_is_one_indexed_job_with_a_pod_for_each_node() -> None:
    world = training()
    body = world.bodies[TRAIN]
    spec = body["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (2, 2, "Indexed")
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    variables = {each["name"]: each for each in container["env"]}
    assert variables["FINETUNE_POD_ADDRESS"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert variables["NCCL_DEBUG"]["value"] == "WARN"
    (preference,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preference["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert "nodeAffinity" in pod["affinity"]
    assert (
        '"ranks":{"nodes":2,"perNode":1}' in spec["template"]["metadata"]["annotations"]["finetune.dev/run"]
    )
    assert world.job.status["plan"]["training"]["nodes"] == 2


def test_train_is_a_job_set_if_the_cluster_has_them() -> None:
    settings = SETTINGS.model_copy(update={"job_sets": True})
    world = training(settings=settings)
    body = world.bodies[TRAIN]
    assert (body["kind"], world.bodies["demo-prepare-0"]["kind"]) == ("JobSet", "Job")
    pods = with_pods(world)
    world.job = replace(world.job, spec={**world.job.spec, "suspend": True})
    actions = world.decide().actions
    assert [each.kind for each in actions if isinstance(each, SuspendJob)] == ["JobSet"]
    world.job = replace(world.job, spec={**world.job.spec, "suspend": False})
    for pod in pods:
        end(world, pod, make_result(Stage.TRAIN), 0)
    world.settle()
    assert world.job.status["stage"]["name"] == "Merge"
    assert TRAIN not in world.children


def test_a_train_of_one_pod_is_a_job_beside_job_sets() -> None:
    settings = SETTINGS.model_copy(update={"job_sets": True})
    world = World(settings=settings)
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    assert world.bodies[TRAIN]["kind"] == "Job"


def test_several_gpus_of_one_node_are_one_pod() -> None:
    inventory = make_inventory(make_node("gpu1", gpus=4))
    world = World(job=make_job(make_spec(resources={"gpus": 4})), inventory=inventory)
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    spec = world.bodies[TRAIN]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (1, 1)
    assert "completionMode" not in spec
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "FINETUNE_POD_ADDRESS" not in {each["name"] for each in container["env"]}
    assert (
        '"ranks":{"nodes":1,"perNode":4}' in spec["template"]["metadata"]["annotations"]["finetune.dev/run"]
    )
    assert world.job.status["plan"]["training"]["gpusPerNode"] == 4


def sharing(version: str = "1.12", **resources: Any) -> World:
    """A world whose GPUs hold a part of Mistral-7B, but no replica. PREPARE speaks this version of the contract."""
    inventory = make_inventory(make_node("gpu1", gpus=4, memory=4500))
    world = World(job=make_job(make_spec(resources=resources or {"gpus": 4})), inventory=inventory)
    world.settle()
    prepared = deepcopy(SECTIONS[Stage.PREPARE]["prepare"])
    config = json.loads((CONFIGS / "mistral-7b-instruct-v0.3.json").read_text("utf-8"))
    prepared["model"]["config"] = {name: value for name, value in config.items() if name != "architectures"}
    world.succeed(Stage.PREPARE, version=version, prepare=prepared)
    world.settle()
    return world


def run_of(world: World, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        world.bodies[name]["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run"]
    )
    return found


def test_gpus_that_hold_no_replica_share_the_weights() -> None:
    world = sharing()
    assert run_of(world, TRAIN)["training"]["parallelism"] == "FullyShard"
    assert run_of(world, TRAIN)["ranks"] == {"nodes": 1, "perNode": 4}
    plan = world.job.status["plan"]
    assert plan["training"]["parallelism"] == "FullyShard"
    (choice,) = [choice for choice in plan["choices"] if choice["name"] == "parallelism"]
    assert "a replica needs" in choice["reason"]


def test_a_later_attempt_keeps_how_the_gpus_share_the_model() -> None:
    world = sharing()
    world.run_pod(TRAIN, node="gpu1")
    world.settle()
    # A replica would fit by now, but the workspace has a checkpoint of this plan.
    world.inventory = make_inventory(make_node("gpu1", gpus=4, memory=81920))
    world.end_pod(TRAIN, interrupted(), 75)
    world.settle()
    assert run_of(world, "demo-train-1")["training"]["parallelism"] == "FullyShard"


def test_a_trainer_that_is_too_old_gets_no_shared_weights() -> None:
    world = sharing("1.11")
    assert TRAIN not in world.bodies
    assert any(
        "A replica of the model must fit" in each["message"] for each in world.job.status["conditions"]
    )


def test_racks_are_preferred_after_the_node() -> None:
    trainer = SETTINGS.trainer.model_copy(update={"topology_keys": ("example.com/rack",)})
    world = training(settings=SETTINGS.model_copy(update={"trainer": trainer}))
    pod = world.bodies[TRAIN]["spec"]["template"]["spec"]
    terms = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [(each["weight"], each["podAffinityTerm"]["topologyKey"]) for each in terms] == [
        (100, "kubernetes.io/hostname"),
        (99, "example.com/rack"),
    ]


def test_the_first_pod_has_the_result_of_all() -> None:
    world = training()
    first, second = with_pods(world)
    end(world, second, make_result(Stage.TRAIN), 0)
    world.settle()
    assert world.job.status["stage"]["name"] == "Train"
    end(world, first, make_result(Stage.TRAIN), 0)
    world.settle()
    assert world.job.status["stage"]["name"] == "Merge"
    assert attempt(world) == ("Succeeded", "StageSucceeded")


@pytest.mark.parametrize("state", ["gone", "evicted", "without its label"])
def test_a_first_pod_that_is_lost_after_the_success_does_not_hold_the_job(state: str) -> None:
    """The Job has failed, or is complete, and no event of a pod follows."""
    world = training()
    first, second = with_pods(world)
    end(world, second, make_result(Stage.TRAIN), 0)
    if state == "evicted":
        end(world, first, "", 143)
        world.pods[first.uid] = replace(world.pods[first.uid], disrupted=True)
    elif state == "gone":
        del world.pods[first.uid]
    else:
        end(world, first, make_result(Stage.TRAIN), 0)
        world.hidden.add(first.uid)
    world.children[TRAIN] = replace(world.children[TRAIN], finished=True)
    world.settle()
    assert attempt(world) == ("Succeeded", "StageSucceeded")
    assert world.job.status["stage"]["name"] == "Merge"


def test_merge_waits_for_a_hidden_pod_that_ends_after_the_first_one() -> None:
    world = training()
    first, second = with_pods(world)
    world.hidden.add(second.uid)
    world.lingers = True
    end(world, first, make_result(Stage.TRAIN), 0)
    world.settle()
    assert world.job.status["stage"]["name"] == "Merge"
    assert "demo-merge-0" not in world.children
    world.remove_deleted_pods()
    world.settle()
    assert "demo-merge-0" in world.children


def test_the_failure_of_any_pod_ends_the_attempt() -> None:
    world = training()
    _, second = with_pods(world)
    end(world, second, make_failure(Stage.TRAIN, "NonFiniteLoss"), 65)
    world.settle()
    assert world.condition("Succeeded") == ("False", "NonFiniteLoss")
    assert TRAIN not in world.children


def test_an_attempt_tells_the_pod_that_failed_first_from_those_that_followed() -> None:
    world = training()
    first, second = with_pods(world)
    end(world, first, interrupted(), 75)
    end(world, second, {**make_failure(Stage.TRAIN, "InternalError"), "rank": 1}, 69)
    world.settle()
    entry = world.job.status["attempts"][-1]
    assert (entry["reason"], entry["node"], entry["rank"]) == ("InternalError", "gpu2", 1)
    cause, other = entry["pods"]
    assert cause.pop("completionTime") == entry["completionTime"]
    assert cause == {
        "index": 1,
        "first": True,
        "node": "gpu2",
        "rank": 1,
        "reason": "InternalError",
        "exitCode": 69,
    }
    assert (other["index"], other["first"], other["node"]) == (0, False, "gpu1")
    assert (other["reason"], other["exitCode"]) == ("Interrupted", 75)
    assert "rank" not in other


def test_a_pod_whose_memory_the_kernel_freed_is_the_cause_of_the_interrupted_one() -> None:
    world = training()
    first, second = with_pods(world)
    end(world, first, "", 137, reason="OOMKilled")
    end(world, second, interrupted(), 75)
    world.settle()
    entry = world.job.status["attempts"][-1]
    assert (entry["reason"], entry["node"]) == ("HostOutOfMemory", "gpu1")
    assert [(each["index"], each["reason"], each["first"]) for each in entry["pods"]] == [
        (0, "HostOutOfMemory", True),
        (1, "Interrupted", False),
    ]


def test_a_success_and_a_single_pod_list_no_pods() -> None:
    world = training()
    for pod in with_pods(world):
        end(world, pod, make_result(Stage.TRAIN), 0)
    world.settle()
    assert "pods" not in world.job.status["attempts"][-1]
    alone = training({"gpus": 2, "gpusPerNode": 2}, inventory=make_inventory(make_node("gpu1", gpus=2)))
    alone.run_pod(TRAIN, node="gpu1")
    alone.end_pod(TRAIN, {**make_failure(Stage.TRAIN, "InternalError"), "rank": 1}, 69)
    alone.settle()
    entry = alone.job.status["attempts"][-1]
    assert (entry["rank"], entry["node"]) == (1, "gpu1")
    assert "pods" not in entry


@pytest.mark.parametrize("rank", [64, -1, 10**6, 0.5, "1", True])
def test_a_rank_that_cannot_be_is_no_result(rank: object) -> None:
    world = training()
    _, second = with_pods(world)
    end(world, second, {**make_failure(Stage.TRAIN, "NonFiniteLoss"), "rank": rank}, 65)
    world.settle()
    assert attempt(world) == ("Failed", "StageLost")


def test_an_interrupted_pod_waits_for_the_one_that_tells_the_cause() -> None:
    world = training()
    first, second = with_pods(world)
    end(world, first, interrupted(), 75)
    world.settle()
    assert world.job.status["stage"]["attempt"] == 0
    end(world, second, make_failure(Stage.TRAIN, "NonFiniteLoss"), 65)
    world.settle()
    assert attempt(world) == ("Failed", "NonFiniteLoss")


@pytest.mark.parametrize("reported", [True, False])
def test_a_pod_that_is_evicted_interrupts_all_and_all_begin_again(reported: bool) -> None:  # noqa: FBT001 -- a case
    world = training()
    first, second = with_pods(world)
    end(world, first, interrupted(), 75)
    end(
        world,
        second,
        interrupted() if reported else "",
        75 if reported else 137,
        phase="Failed",
        disrupted=True,
    )
    world.children[TRAIN] = replace(world.children[TRAIN], finished=True)
    world.settle()
    assert attempt(world)[0] == "Interrupted"
    causes = world.job.status["attempts"][-1]["pods"]
    assert [(each["node"], each["first"]) for each in causes] == [("gpu2", True), ("gpu1", False)]
    assert world.created[-1] == "demo-train-1"
    assert world.bodies["demo-train-1"]["spec"]["completions"] == 2


def test_a_lost_node_interrupts_all_although_the_other_pod_runs() -> None:
    world = training()
    _, second = with_pods(world)
    world.pods[second.uid] = replace(second, deleting=True)
    world.lost_nodes = {"gpu2"}
    world.inventory = make_inventory(make_node("gpu1"))
    world.lingers = True
    world.step()
    assert attempt(world)[0] == "Interrupted"
    entry = world.job.status["attempts"][-1]
    assert entry["node"] == "gpu2"
    assert entry["pods"] == [{"index": 1, "first": True, "node": "gpu2", "reason": "Disrupted"}]


def test_a_pod_without_a_gpu_gives_back_that_of_the_other() -> None:
    world = training()
    world.run_pod(TRAIN, index=0, node="gpu1", scheduled=world.now)
    world.run_pod(
        TRAIN, index=1, node="", phase="Pending", running=False, unschedulable="0/2 nodes are available"
    )
    world.settle()
    assert world.condition("Reconciling") == ("True", "Unschedulable")
    world.wait(299)
    world.settle()
    assert TRAIN in world.children
    world.wait(1)
    world.settle()
    assert world.condition("Stalled") == ("True", "PodStuck")
    assert (world.children, world.pods) == ({}, {})
    entry = next(each for each in world.job.status["conditions"] if each["type"] == "Stalled")
    assert "only 1 of the 2 pods of the run got GPUs" in entry["message"]
    assert "0/2 nodes are available" in entry["message"]


def test_pods_that_all_wait_hold_nothing() -> None:
    world = training()
    for index in (0, 1):
        world.run_pod(TRAIN, index=index, node="", phase="Pending", running=False, unschedulable="full")
    world.wait(3600)
    world.settle()
    assert TRAIN in world.children
    assert world.condition("Reconciling") == ("True", "WaitingForGpu")


def test_a_pod_that_waits_for_another_does_not_stand_still() -> None:
    """The other one pulls its image, and the first one has nothing to do until then."""
    spec = make_spec(resources=TWO, lifecycle={"noProgressSeconds": 60})
    world = training(job=make_job(spec))

    def poll() -> None:
        world.movement = answered(world.movement, first.uid, make_progress(Stage.TRAIN), world.now)
        world.settle()

    first = world.run_pod(TRAIN, index=0, node="gpu1", scheduled=world.now)
    second = world.run_pod(TRAIN, index=1, node="gpu2", scheduled=world.now, phase="Pending", running=False)
    poll()
    world.wait(200)
    poll()
    assert TRAIN in world.children
    world.pods[second.uid] = replace(second, phase="Running", running=True, started=world.now)
    world.wait(59)
    poll()
    assert TRAIN in world.children
    world.wait(1)
    poll()
    assert attempt(world) == ("Failed", "NoProgress")


def test_pods_that_run_are_left_alone() -> None:
    world = training()
    with_pods(world)
    world.wait(3600)
    world.settle()
    assert TRAIN in world.children
    assert world.condition("Reconciling") == ("True", "Training")


def test_the_time_of_all_gpus_is_counted_once() -> None:
    world = training()
    first, second = with_pods(world)
    world.wait(100)
    end(world, second, make_result(Stage.TRAIN), 0)
    end(world, first, make_result(Stage.TRAIN), 0)
    world.settle()
    assert world.job.status["usage"]["gpuSeconds"] == 200


def test_a_claim_of_one_node_is_refused_before_any_work() -> None:
    spec = make_spec(resources=TWO, workspace={"existingClaim": "mine"})
    world = World(job=make_job(spec), inventory=make_inventory(make_node("gpu1"), make_node("gpu2")))
    world.volumes = JobVolumes(workspace=MountedClaim("mine", "claim", ("ReadWriteOnce",)))
    world.settle()
    assert world.condition("Succeeded") == ("False", "WorkspaceNotShared")
    assert world.created == []


def test_a_claim_that_was_made_for_one_node_stalls_the_job_until_such_a_node_joins() -> None:
    inventory = make_inventory(make_node("gpu1", gpus=2))
    world = World(job=make_job(make_spec(resources={"gpus": 2})), inventory=inventory)
    world.settle()
    world.inventory = make_inventory(make_node("gpu1"), make_node("gpu2"))
    world.volumes = JobVolumes(workspace=MountedClaim("demo-workspace", "claim", ("ReadWriteOnce",)))
    world.succeed(Stage.PREPARE)
    world.settle()
    assert world.condition("Stalled") == ("True", "WorkspaceNotShared")
    world.inventory = inventory
    world.settle()
    assert list(world.children) == [TRAIN]


@pytest.mark.parametrize(("resources", "mode"), [(TWO, "ReadWriteMany"), ({}, "ReadWriteOnce")])
def test_the_workspace_of_several_pods_is_shared(resources: dict[str, Any], mode: str) -> None:
    inventory = make_inventory(make_node("gpu1"), make_node("gpu2"))
    world = World(job=make_job(make_spec(resources=resources)), inventory=inventory)
    decision = world.decide()
    claims = [action.body for action in decision.actions if isinstance(action, CreateClaim)]
    assert [claim["spec"]["accessModes"] for claim in claims] == [[mode]]


def chosen_gpus(world: World) -> tuple[str, str]:
    """The number of GPUs that the plan has chosen, and the number that the pod of TRAIN requests."""
    (choice,) = [choice for choice in world.job.status["plan"]["choices"] if choice["name"] == "gpus"]
    name = world.created[-1]
    (container,) = world.bodies[name]["spec"]["template"]["spec"]["containers"]
    return choice["value"], container["resources"]["limits"]["nvidia.com/gpu"]


def test_a_job_gets_as_many_gpus_as_it_needs_up_to_its_maximum() -> None:
    world = sharing(maximumGpus=8)
    assert chosen_gpus(world) == ("3", "3")
    assert run_of(world, TRAIN)["ranks"] == {"nodes": 1, "perNode": 3}
    plan = world.job.status["plan"]
    assert plan["training"]["gpusPerNode"] == 3
    assert "Exchange" in {part["name"] for part in plan["duration"]["parts"]}


def test_a_small_model_gets_one_gpu_of_its_maximum() -> None:
    inventory = make_inventory(make_node("gpu1", gpus=4))
    world = World(job=make_job(make_spec(resources={"maximumGpus": 4})), inventory=inventory)
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    assert chosen_gpus(world) == ("1", "1")
    assert "ranks" not in run_of(world, TRAIN)


def test_the_number_follows_the_nodes_until_a_pod_has_trained() -> None:
    world = sharing(maximumGpus=8)
    larger = make_inventory(make_node("gpu1", gpus=4, memory=4500), make_node("gpu2", memory=81920))
    world.inventory = larger
    world.settle()
    assert world.created[-1] == "demo-train-1"
    assert chosen_gpus(world) == ("1", "1")


def test_a_job_that_has_begun_to_train_keeps_its_number() -> None:
    world = sharing(maximumGpus=8)
    world.run_pod(TRAIN, node="gpu1")
    world.settle()
    world.wait(100)
    world.inventory = make_inventory(make_node("gpu1", gpus=8, memory=81920))
    world.end_pod(TRAIN, interrupted(), 75)
    world.settle()
    assert world.created[-1] == "demo-train-1"
    assert chosen_gpus(world) == ("3", "3")
    assert run_of(world, "demo-train-1")["training"]["parallelism"] == "FullyShard"
    assert world.job.status["usage"]["gpuSeconds"] == 300


def test_a_trainer_that_is_too_old_gets_one_gpu_of_a_maximum() -> None:
    world = sharing("1.11", maximumGpus=8)
    assert TRAIN not in world.bodies
    message = next(each["message"] for each in world.job.status["conditions"] if each["type"] == "Stalled")
    assert "must fit on" in message


@pytest.mark.parametrize(
    ("resources", "mode"),
    [
        ({"maximumGpus": 4}, "ReadWriteOnce"),
        ({"maximumGpus": 4, "gpusPerNode": 1}, "ReadWriteMany"),
        ({"maximumGpus": 3, "gpusPerNode": 2}, "ReadWriteOnce"),
    ],
)
def test_only_a_number_of_pods_to_choose_makes_the_workspace_shared(
    resources: dict[str, Any], mode: str
) -> None:
    inventory = make_inventory(make_node("gpu1"), make_node("gpu2"))
    world = World(job=make_job(make_spec(resources=resources)), inventory=inventory)
    claims = [action.body for action in world.decide().actions if isinstance(action, CreateClaim)]
    assert [claim["spec"]["accessModes"] for claim in claims] == [[mode]]


@pytest.mark.parametrize(
    ("resources", "begins"), [({"maximumGpus": 2}, True), ({"maximumGpus": 2, "gpusPerNode": 1}, False)]
)
def test_a_claim_of_one_node_suits_a_maximum_of_one_pod(resources: dict[str, Any], begins: bool) -> None:  # noqa: FBT001 -- a case
    spec = make_spec(resources=resources, workspace={"existingClaim": "mine"})
    world = World(job=make_job(spec), inventory=make_inventory(make_node("gpu1"), make_node("gpu2")))
    world.volumes = JobVolumes(workspace=MountedClaim("mine", "claim", ("ReadWriteOnce",)))
    world.settle()
    assert bool(world.created) == begins
    if not begins:
        assert world.condition("Succeeded") == ("False", "WorkspaceNotShared")
