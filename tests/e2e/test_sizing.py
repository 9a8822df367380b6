"""The operator sizes and places a job before it requests a GPU, and decides again when nodes change."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

import pytest
from devcluster import product
from devcluster.gpus import RESOURCE, Gpus
from devcluster.kubectl import Kubectl
from devcluster.pretend_nodes import GPU_TAINT, PretendNode, PretendNodes, gpu_node
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.object_recorder import ObjectRecorder
from tests.support.e2e.pretend_gpus import LONG_ROW, PretendGpus

pytestmark = pytest.mark.cluster

PRODUCT_LABEL = "nvidia.com/gpu.product"
NO_GPUS = Gpus(count=0)
PREPARE_SECONDS = 90.0
DECISION_SECONDS = 15.0

SetGpus = Callable[[Gpus], None]


def conditions(job: dict[str, Any]) -> dict[str, str]:
    """Return the statuses of the conditions for a blocked job, by type."""
    return {kind: product.condition(job, kind)["status"] for kind in ("Succeeded", "Stalled", "Reconciling")}


STUCK = {"Succeeded": "Unknown", "Stalled": "True", "Reconciling": "False"}
GOING_ON = {"Succeeded": "Unknown", "Stalled": "False", "Reconciling": "True"}


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds from one RFC 3339 time to another."""
    return (datetime.datetime.fromisoformat(later) - datetime.datetime.fromisoformat(earlier)).total_seconds()


def test_train_lands_on_the_smallest_gpu_that_fits_then_on_the_next(
    room: Kubectl, gpus: SetGpus, pretend_nodes: PretendNodes, sizes: PretendGpus, volume_classes: None
) -> None:
    del volume_classes
    gpus(NO_GPUS)
    pretend_nodes.add(
        gpu_node("pretend-tiny", sizes.too_small),
        gpu_node("pretend-small", sizes.small),
        gpu_node("pretend-large", sizes.large),
    )
    room.apply(jobs.fine_tune_job("choose", workspace=jobs.SHARED_WORKSPACE))
    pod = jobs.bound(room, "choose", "train", "pretend-small", seconds=PREPARE_SECONDS)
    assert jobs.required_values(pod, PRODUCT_LABEL) == {sizes.small.product, sizes.large.product}

    plan = room.json("get", "finetunejob", "choose")["status"]["plan"]
    assert plan["gpu"]["product"] == sizes.small.product
    assert plan["memory"]["deviceBytes"] <= plan["gpu"]["usableBytes"] <= sizes.small.memory_mib << 20
    training = plan["training"]
    assert training["microBatchSize"] * training["gradientAccumulationSteps"] == 2
    assert all(choice["reason"] for choice in plan["choices"])

    pretend_nodes.remove("pretend-small")
    jobs.bound(room, "choose", "train", "pretend-large", seconds=60)


def test_a_job_that_fits_nowhere_stalls_in_seconds_and_resumes_when_a_gpu_joins(
    cluster: ProvidedCluster, room: Kubectl, gpus: SetGpus, sizes: PretendGpus
) -> None:
    gpus(sizes.short_rows)
    room.apply(jobs.config_map("long", jobs.jsonl(_long_conversations())))
    dataset = {"configMap": {"name": "long", "key": "data.jsonl"}}
    with ObjectRecorder(cluster.kubeconfig, str(room.namespace)) as seen:
        room.apply(jobs.fine_tune_job("patient", dataset=dataset))
        job = jobs.until(
            room, "patient", "DoesNotFit after PREPARE", seconds=PREPARE_SECONDS,
            holds=lambda job: jobs.stalled("DoesNotFit")(job) and bool(job["status"].get("attempts")),
        )  # fmt: skip
        (attempt,) = job["status"]["attempts"]
        stalled = product.condition(job, "Stalled")
        assert conditions(job) == STUCK
        assert (attempt["stage"], attempt["outcome"]) == ("Prepare", "Succeeded")
        assert seconds_between(attempt["completionTime"], stalled["lastTransitionTime"]) <= 5
        assert sizes.short_rows.product in stalled["message"]
        # If a Job were created by mistake, it would be created at once.
        time.sleep(3)
        assert seen.jobs == ["patient-prepare-0"]
        assert seen.gpu_pods == []

    gpus(Gpus())
    job = product.follow(room, "patient", seconds=180)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    assert job["status"]["plan"]["gpu"]["product"] == Gpus().product.replace("-", " ")
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in job["status"]["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Succeeded"), ("Merge", 0, "Succeeded")]


def _long_conversations() -> list[dict[str, Any]]:
    """Return rows of LONG_ROW tokens and more, below the job's maximum."""
    rows = jobs.conversations(24)
    for number, row in enumerate(rows):
        row["messages"][1]["content"] = f"Row {number}: " + " ".join(["yes"] * LONG_ROW)
    return rows


def test_every_change_of_the_nodes_is_a_new_decision_with_its_own_reason(
    kubectl: Kubectl, room: Kubectl, gpus: SetGpus, pretend_nodes: PretendNodes, volume_classes: None
) -> None:
    del volume_classes
    gpus(NO_GPUS)
    room.apply(jobs.fine_tune_job("watchful", workspace=jobs.SHARED_WORKSPACE))

    def expect(reason: str, *, seconds: float = DECISION_SECONDS) -> str:
        job = jobs.until(room, "watchful", reason, seconds=seconds, holds=jobs.stalled(reason))
        assert conditions(job) == STUCK
        assert jobs.stage_pods(room, "watchful", "train") == []
        return str(product.condition(job, "Stalled")["message"])

    # From the model's config alone: PREPARE postpones the rest until a suitable GPU exists.
    assert RESOURCE in expect("DoesNotFit", seconds=PREPARE_SECONDS)

    pretend_nodes.add(gpu_node("pretend-old", Gpus("Tesla-T4", 15360, 1)))
    assert "T4" in expect("GpuNotSupported")
    pretend_nodes.remove("pretend-old")

    pretend_nodes.add(PretendNode("pretend-mute", resources={RESOURCE: "1"}, taints=(GPU_TAINT,)))
    assert "pretend-mute" in expect("GpuMemoryUnknown")
    pretend_nodes.remove("pretend-mute")
    expect("DoesNotFit")

    pretend_nodes.add(gpu_node("pretend-closed", Gpus(count=1), cordoned=True))
    job = jobs.until(
        room, "watchful", "WaitingForGpu", seconds=PREPARE_SECONDS, holds=jobs.waiting("WaitingForGpu")
    )
    assert conditions(job) == GOING_ON
    kubectl("uncordon", "pretend-closed")
    jobs.bound(room, "watchful", "train", "pretend-closed", seconds=30)

    pretend_nodes.remove("pretend-closed")
    expect("DoesNotFit", seconds=30)


def test_waiting_for_a_busy_gpu_burns_no_deadline(
    operator: ProvidedCluster, room: Kubectl, gpus: SetGpus
) -> None:
    gpus(Gpus(count=1))
    deadline = 80  # PREPARE must end within it, also on a busy machine
    room.apply(
        _gpu_holder(room, operator.trainer_image),
        jobs.fine_tune_job("queued", lifecycle={"deadlineSeconds": deadline}),
    )
    job = jobs.until(
        room, "queued", "WaitingForGpu", seconds=PREPARE_SECONDS, holds=jobs.waiting("WaitingForGpu")
    )
    assert conditions(job) == GOING_ON
    assert "L4" in product.condition(job, "Reconciling")["message"]
    began = datetime.datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    late = (began - datetime.datetime.now(datetime.UTC)).total_seconds() + deadline + 5
    time.sleep(max(late, 0))
    assert jobs.waiting("WaitingForGpu")(room.json("get", "finetunejob", "queued"))

    room("delete", "pod", "holder", "--grace-period=0", "--force")
    node = room.json("get", "pod", "--selector=finetune.dev/stage=train")["items"][0]["metadata"]["name"]
    room("wait", f"pod/{node}", "--for=condition=PodScheduled", "--timeout=30s")
    job = jobs.until(
        room,
        "queued",
        "the end of the wait",
        seconds=30,
        holds=lambda job: not jobs.waiting("WaitingForGpu")(job),
    )
    assert product.condition(job, "Succeeded")["reason"] != "DeadlineExceeded"


def _gpu_holder(room: Kubectl, image: str) -> dict[str, Any]:
    """Return a pod that holds the only GPU."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "holder", "namespace": room.namespace},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": product.RESTRICTED_POD,
            "containers": [
                {
                    "name": "holder",
                    "image": image,
                    "command": ["sleep", "3600"],
                    "securityContext": product.RESTRICTED_CONTAINER,
                    "resources": {"limits": {RESOURCE: "1"}},
                }
            ],
        },
    }


def test_a_part_of_a_gpu_that_fits_is_used_and_one_that_does_not_is_left(
    room: Kubectl, pretend_nodes: PretendNodes, sizes: PretendGpus, volume_classes: None
) -> None:
    """With the MIG strategy `mixed`, each profile has separate resources and labels."""
    del volume_classes
    profile = "mig-1g.5gb"
    pretend_nodes.add(
        _mig_node("pretend-mig-tiny", profile, sizes.least_mib // 2),
        _mig_node("pretend-mig-good", profile, 4864),
    )
    resource = f"nvidia.com/{profile}"
    room.apply(
        jobs.fine_tune_job("slice", workspace=jobs.SHARED_WORKSPACE, resources={"gpuResourceName": resource})
    )
    pod = jobs.bound(room, "slice", "train", "pretend-mig-good", seconds=PREPARE_SECONDS)
    assert pod["spec"]["containers"][0]["resources"]["limits"][resource] == "1"


def _mig_node(name: str, profile: str, memory_mib: int) -> PretendNode:
    labels = Gpus("NVIDIA-A100-SXM4-40GB", 40960, 1).labels() | {
        "nvidia.com/mig.strategy": "mixed",
        f"nvidia.com/{profile}.product": f"NVIDIA-Pretend-{memory_mib}-MIG-1g.5gb",
        f"nvidia.com/{profile}.memory": str(memory_mib),
        f"nvidia.com/{profile}.count": "7",
        f"nvidia.com/{profile}.replicas": "1",
    }
    return PretendNode(name, labels, {f"nvidia.com/{profile}": "7"}, taints=(GPU_TAINT,))
