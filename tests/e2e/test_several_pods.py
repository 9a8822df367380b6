"""TRAIN in two pods with a GPU each: it ends as one, resumes after a loss of one, and never holds half of its GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from devcluster import product
from devcluster.gpus import RESOURCE, Gpus
from devcluster.kubectl import Kubectl
from devcluster.layout import NODE_NAME
from devcluster.pretend_nodes import PretendNodes, gpu_node
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.pairs import in_two_pods, live_through_an_eviction_and_a_suspension

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("volume_classes")]

START_SECONDS = 20


@pytest.fixture(scope="module")
def patient(operator: ProvidedCluster) -> Iterator[None]:
    """An operator that takes GPUs back soon. The first pod of a real cluster waits longer for the others."""
    product.install_chart(
        operator,
        {
            "startSeconds": START_SECONDS,
            # Two pods of TRAIN must fit on a small machine.
            "trainer": {"resources": {"train": {"cpu": "250m", "memory": "3Gi"}}},
        },
    )
    yield
    product.install_chart(operator)


@pytest.mark.usefixtures("patient")
def test_two_pods_train_as_one_through_an_eviction_and_a_suspension(room: Kubectl) -> None:
    job = live_through_an_eviction_and_a_suspension(room, "pair")
    training = job["status"]["plan"]["training"]
    assert (training["nodes"], training["gpusPerNode"]) == (2, 1)
    assert jobs.stage_pods(room, "pair", "train") == []


@pytest.mark.usefixtures("patient")
def test_a_lost_node_and_a_missing_gpu_give_back_the_gpu_of_the_other_pod(
    room: Kubectl, pretend_nodes: PretendNodes
) -> None:
    """The pods share the frozen weights. Each loads its part anew when all have GPUs."""
    container = {
        "name": "main",
        "image": "registry.invalid/none:1",
        "securityContext": product.RESTRICTED_CONTAINER,
        "resources": {"limits": {RESOURCE: "1"}},
    }
    pod = {"securityContext": product.RESTRICTED_POD, "containers": [container]}
    room.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": pod})
    room("wait", "pod/other", "--for=condition=PodScheduled", "--timeout=60s")
    pretend_nodes.add(gpu_node("pretend-half", Gpus(count=1)))
    room.apply(in_two_pods("half", maximumSteps=2, parallelism="FullyShard"))
    jobs.until(
        room, "half", "a pod on each node", seconds=300,
        holds=lambda _: {each["spec"].get("nodeName") for each in jobs.stage_pods(room, "half", "train")}
        == {NODE_NAME, "pretend-half"},
    )  # fmt: skip
    pretend_nodes.remove("pretend-half")
    job = jobs.until(room, "half", "PodStuck", seconds=300, holds=jobs.stalled("PodStuck"))
    lost, stuck = job["status"]["attempts"][-2:]
    assert (lost["stage"], lost["outcome"], stuck["reason"]) == ("Train", "Interrupted", "PodStuck")
    message = product.condition(job, "Stalled")["message"]
    assert "only 1 of the 2 pods of the run got GPUs" in message
    jobs.until(room, "half", "no pod", seconds=60, holds=lambda _: not jobs.stage_pods(room, "half", "train"))
    room("delete", "pod", "other", "--grace-period=0", "--force")
    ended = product.follow(room, "half", seconds=400)
    assert product.condition(ended, "Succeeded")["status"] == "True", ended["status"]
    assert ended["status"]["plan"]["training"]["parallelism"] == "FullyShard"
