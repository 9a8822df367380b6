"""The administrator's settings for sizing: GPUs of nodes that do not exist yet, a private hub, and too little TRAIN memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs, quickstart
from tests.support.e2e.hub import REPOSITORY, Hub, hub_server, write_model_of_shape

pytestmark = pytest.mark.cluster

# The shape of Llama 3.1 70B.
HUGE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SHARDS = 29

FUTURE_RESOURCE = "gpus.example.com/future"
FUTURE_LABELS = {"example.com/pool": "future"}
PROFILES = [
    {
        "name": "future",
        "product": "NVIDIA L4",
        "count": 1,
        "resourceName": FUTURE_RESOURCE,
        "labels": FUTURE_LABELS,
    }
]
TRAIN_MEMORY_MIB = 200


@pytest.fixture(scope="module")
def hub(
    operator: ProvidedCluster, workplace: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hub]:
    """A hub with a model that no GPU here can train; the operator is configured with it and with PROFILES."""
    model = tmp_path_factory.mktemp("hub") / "model"
    write_model_of_shape(model, HUGE, quickstart.BASE_MODEL, SHARDS)
    with hub_server(workplace, operator.trainer_image, model) as running:
        trainer = {
            "huggingFaceEndpoint": running.endpoint,
            "resources": {"train": {"cpu": "250m", "memory": f"{TRAIN_MEMORY_MIB}Mi"}},
        }
        product.install_chart(operator, {"gpuProfiles": PROFILES, "trainer": trainer})
        yield running
        product.install_chart(operator)


def test_a_hopeless_job_is_known_from_the_models_shape_before_any_weight_is_fetched(
    cluster: ProvidedCluster, hub: Hub, settled: Kubectl
) -> None:
    job = jobs.fine_tune_job("hopeless", model={"source": {"huggingFace": {"repository": REPOSITORY}}})
    jobs.held(settled, cluster.kubeconfig, job, seconds=60)
    requests = hub.requests()
    assert requests["config.json"] >= 1
    assert not [name for name in requests if name.endswith(".safetensors")]


def test_a_gpu_that_only_a_profile_knows_is_waited_for_by_its_labels(
    hub: Hub, settled: Kubectl, volume_classes: None
) -> None:
    del hub, volume_classes
    resources = {"gpuResourceName": FUTURE_RESOURCE}
    # A volume that only one node can use is unreachable from a node that does not exist yet.
    settled.apply(jobs.fine_tune_job("future", resources=resources, workspace=jobs.SHARED_WORKSPACE))
    jobs.until(settled, "future", "WaitingForGpu", seconds=90, holds=jobs.waiting("WaitingForGpu"))
    (pod,) = jobs.stage_pods(settled, "future", "train")
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    keys = {
        expression["key"]
        for term in terms["nodeSelectorTerms"]
        for expression in term.get("matchExpressions", [])
    }
    assert keys == set(FUTURE_LABELS)
    assert jobs.required_values(pod, "example.com/pool") == {"future"}
    assert "nodeName" not in pod["spec"]


def test_a_stage_that_the_host_kills_for_its_memory_is_tried_once_more_with_more(
    hub: Hub, settled: Kubectl
) -> None:
    del hub
    limits: dict[str, str] = {}

    def look(_job: dict[str, Any]) -> None:
        for pod in jobs.stage_pods(settled, "starved", "train"):
            limits[pod["metadata"]["name"].rsplit("-", 1)[0]] = pod["spec"]["containers"][0]["resources"][
                "limits"
            ]["memory"]

    settled.apply(jobs.fine_tune_job("starved"))
    job = product.follow(settled, "starved", seconds=120, seen=look)
    succeeded = product.condition(job, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "HostOutOfMemory"), succeeded
    attempts = [(a["stage"], a["attempt"], a["outcome"]) for a in job["status"]["attempts"]]
    assert attempts == [("Prepare", 0, "Succeeded"), ("Train", 0, "Failed"), ("Train", 1, "Failed")]
    assert {a["reason"] for a in job["status"]["attempts"][1:]} == {"HostOutOfMemory"}
    assert set(limits) == {"starved-train-0", "starved-train-1"}
    assert _mib(limits["starved-train-0"]) == TRAIN_MEMORY_MIB < _mib(limits["starved-train-1"])


def _mib(quantity: str) -> float:
    """Return a memory quantity in MiB."""
    units = {"Ki": 1 / 1024, "Mi": 1.0, "Gi": 1024.0}
    return float(quantity[:-2]) * units[quantity[-2:]] if quantity[-2:] in units else int(quantity) / 2**20
