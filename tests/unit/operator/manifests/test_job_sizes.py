"""The Job of a stage requests the chosen sizes and places."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.manifests.jobs import build_job, build_workspace_claim
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds

from tests.support.operator import make_job, make_spec

TRAINER = TrainerSettings(image="registry.example/finetune/trainer:1")
MIB, GIB = 2**20, 2**30
HOST = HostNeeds("3", 6 * GIB + 512 * MIB, "because", 256 * MIB, 2 * GIB)
AFFINITY: dict[str, Any] = {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
}


def pod_spec(spec: dict[str, Any], stage: Stage, host: HostNeeds = HOST, **options: Any) -> dict[str, Any]:
    job = build_job(make_job(spec), FineTuneJobSpec.parse(spec), stage, 0, {}, TRAINER, host=host, **options)
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def volumes(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {volume["name"]: volume for volume in pod["volumes"]}


def test_the_pod_requests_the_chosen_sizes() -> None:
    pod = pod_spec(make_spec(), Stage.TRAIN, host=HOST)
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == {
        "cpu": "3",
        "memory": "6656Mi",
        "ephemeral-storage": "2Gi",
        "nvidia.com/gpu": "1",
    }
    assert resources["limits"] == {"memory": "6656Mi", "nvidia.com/gpu": "1"}
    assert volumes(pod)["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}
    assert volumes(pod)["tmp"]["emptyDir"] == {"sizeLimit": "2Gi"}


def test_sizes_of_the_spec_are_requested_as_written() -> None:
    spec = make_spec(resources={"merge": {"cpu": "1500m", "memory": "7G"}})
    requests = pod_spec(spec, Stage.MERGE, host=HOST)["containers"][0]["resources"]["requests"]
    assert (requests["cpu"], requests["memory"]) == ("1500m", "7G")


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_an_affinity_is_passed_on_and_without_one_the_field_is_absent(stage: Stage) -> None:
    assert pod_spec(make_spec(), stage, affinity=AFFINITY)["affinity"] == AFFINITY
    assert "affinity" not in pod_spec(make_spec(), stage)


@pytest.mark.parametrize(
    ("resource", "keys"),
    [
        ("nvidia.com/gpu", ["nvidia.com/gpu"]),
        ("amd.com/gpu", ["amd.com/gpu"]),
        ("nvidia.com/mig-3g.40gb", ["nvidia.com/mig-3g.40gb", "nvidia.com/gpu"]),
    ],
)
def test_train_tolerates_the_taints_of_gpu_nodes(resource: str, keys: list[str]) -> None:
    """Clusters taint GPU nodes with the resource's name, and not all of them add the toleration automatically."""
    own = {"key": "team", "operator": "Equal", "value": "a"}
    spec = make_spec(resources={"gpuResourceName": resource, "tolerations": [own]})
    expected = [own, *({"key": key, "operator": "Exists"} for key in keys)]
    assert pod_spec(spec, Stage.TRAIN)["tolerations"] == expected
    for stage in (Stage.PREPARE, Stage.MERGE):
        assert "tolerations" not in pod_spec(spec, stage)
        assert pod_spec(spec, stage, tolerates_gpu_nodes=True)["tolerations"] == expected


def test_a_toleration_that_the_user_set_appears_once() -> None:
    own = {"key": "nvidia.com/gpu", "operator": "Exists"}
    assert pod_spec(make_spec(resources={"tolerations": [own]}), Stage.TRAIN)["tolerations"] == [own]


def test_only_train_configures_the_gpu_allocator() -> None:
    for stage in WORK_STAGES:
        names = {
            entry["name"]: entry.get("value")
            for entry in pod_spec(make_spec(), stage)["containers"][0]["env"]
        }
        expected = "expandable_segments:True" if stage is Stage.TRAIN else None
        assert names.get("PYTORCH_ALLOC_CONF") == expected


def test_a_workspace_without_a_size_gets_the_chosen_size() -> None:
    def size(spec: dict[str, Any], chosen: str) -> str:
        claim = build_workspace_claim(make_job(spec), FineTuneJobSpec.parse(spec), chosen)
        found: str = claim["spec"]["resources"]["requests"]["storage"]
        return found

    assert size(make_spec(), "20Gi") == "20Gi"
    assert size(make_spec(), "60Gi") == "60Gi"
    assert size(make_spec(workspace={"size": "5Gi"}), "60Gi") == "5Gi"
