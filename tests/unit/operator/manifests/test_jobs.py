from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.manifests.jobs import build_job, build_workspace_claim
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds

from tests.support.operator import UID, make_job, make_spec

TRAINER = TrainerSettings(image="registry.example/finetune/trainer:1")
HOST = HostNeeds("2", 8 * 2**30, "because", 2**28, 2**30)
FULL = make_spec(
    dataset={
        "source": {"url": {"secretKeyRef": {"name": "data", "key": "url"}}},
        "validation": {"source": {"url": {"secretKeyRef": {"name": "held-out", "key": "url"}}}},
    },
    model={
        "source": {"huggingFace": {"repository": "a/b", "tokenSecretRef": {"name": "hub", "key": "token"}}},
        "chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "chat.jinja"}},
    },
    resources={
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
        "gpuResourceName": "example.com/gpu",
        "train": {"cpu": 3, "memory": "30Gi"},
    },
    podTemplate={
        "serviceAccountName": "tuner",
        "imagePullSecrets": [{"name": "pull"}],
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
    },
)


def build(spec: dict[str, Any], stage: Stage) -> dict[str, Any]:
    return build_job(
        make_job(spec), FineTuneJobSpec.parse(spec), stage, 1, {"version": "1.0"}, TRAINER, host=HOST
    )


def pod_spec(spec: dict[str, Any], stage: Stage) -> dict[str, Any]:
    pod: dict[str, Any] = build(spec, stage)["spec"]["template"]["spec"]
    return pod


def container(spec: dict[str, Any], stage: Stage) -> dict[str, Any]:
    (trainer,) = pod_spec(spec, stage)["containers"]
    return dict(trainer)


def variables(spec: dict[str, Any], stage: Stage) -> dict[str, Any]:
    return {entry["name"]: entry for entry in container(spec, stage)["env"]}


def mounts(spec: dict[str, Any], stage: Stage) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container(spec, stage)["volumeMounts"]}


@pytest.mark.parametrize("stage", list(Stage))
def test_pods_meet_the_restricted_security_level(stage: Stage) -> None:
    pod, trainer = pod_spec(FULL, stage), container(FULL, stage)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert trainer["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {
        "configMap",
        "downwardAPI",
        "emptyDir",
        "persistentVolumeClaim",
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


@pytest.mark.parametrize("stage", list(Stage))
def test_attempts_belong_to_the_operator_and_disruptions_to_the_job_controller(stage: Stage) -> None:
    job = build(make_spec(), stage)
    assert job["metadata"]["name"] == f"demo-{stage.slug}-1"
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert job["spec"]["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, True)


def test_only_train_requests_a_gpu_and_node_constraints() -> None:
    for stage in Stage:
        pod, trainer = pod_spec(FULL, stage), container(FULL, stage)
        train = stage is Stage.TRAIN
        assert ("example.com/gpu" in trainer["resources"]["limits"]) == train
        for field in ("nodeSelector", "tolerations", "runtimeClassName"):
            assert (field in pod) == train, field
        assert pod["priorityClassName"] == "high"
        assert ("NVIDIA_VISIBLE_DEVICES" in variables(FULL, stage)) != train
        annotations = build(FULL, stage)["spec"]["template"]["metadata"]["annotations"]
        assert ("karpenter.sh/do-not-disrupt" in annotations) == train
        assert annotations["note"] == "b"
        assert json.loads(annotations["finetune.dev/run"]) == {"version": "1.0"}
    assert variables(FULL, Stage.MERGE)["NVIDIA_VISIBLE_DEVICES"]["value"] == "void"


def test_memory_is_limited_to_what_is_requested_and_cpu_is_not_limited() -> None:
    resources = container(FULL, Stage.TRAIN)["resources"]
    assert resources["requests"] == {
        "cpu": "3",
        "memory": "30Gi",
        "ephemeral-storage": "1Gi",
        "example.com/gpu": "1",
    }
    assert resources["limits"] == {"memory": "30Gi", "example.com/gpu": "1"}
    assert container(FULL, Stage.PREPARE)["resources"]["requests"] == {
        "cpu": "2",
        "memory": "8Gi",
        "ephemeral-storage": "1Gi",
    }


def test_only_prepare_gets_secrets_and_only_by_reference() -> None:
    secret = {"FINETUNE_DATASET_URL", "FINETUNE_VALIDATION_URL", "FINETUNE_MODEL_TOKEN"}
    prepare = variables(FULL, Stage.PREPARE)
    assert secret <= set(prepare)
    assert prepare["FINETUNE_MODEL_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert all("value" not in prepare[name] for name in secret)
    for stage in (Stage.TRAIN, Stage.MERGE):
        assert not secret & set(variables(FULL, stage))


STORES = make_spec(
    model={"source": {"azure": {"uri": "az://account/models/a", "secretRef": {"name": "azure"}}}},
    dataset={
        "source": {"s3": {"uri": "s3://bucket/rows.jsonl", "secretRef": {"name": "store"}}},
        "validation": {
            "source": {
                "huggingFace": {"repository": "a/b", "tokenSecretRef": {"name": "hub", "key": "token"}}
            }
        },
        "targetPrompts": {"configMapKeyRef": {"name": "production", "key": "prompts.txt"}},
    },
    modelCache={"claimName": "bases"},
)


def test_only_prepare_gets_whole_secrets_each_with_its_own_prefix() -> None:
    assert container(STORES, Stage.PREPARE)["envFrom"] == [
        {"prefix": "FINETUNE_MODEL_", "secretRef": {"name": "azure"}},
        {"prefix": "FINETUNE_DATASET_", "secretRef": {"name": "store"}},
    ]
    token = variables(STORES, Stage.PREPARE)["FINETUNE_VALIDATION_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    for stage in (Stage.TRAIN, Stage.MERGE):
        assert "envFrom" not in container(STORES, stage)
        assert "FINETUNE_VALIDATION_TOKEN" not in variables(STORES, stage)


def test_a_store_without_a_secret_uses_the_pods_identity() -> None:
    spec = make_spec(dataset={"source": {"gcs": {"uri": "gs://bucket/rows.jsonl"}}})
    assert "envFrom" not in container(spec, Stage.PREPARE)


def test_only_prepare_gets_the_administrators_hub() -> None:
    trainer = TRAINER.model_copy(update={"hugging_face_endpoint": "https://hub.example.com"})
    for stage in Stage:
        job = build_job(
            make_job(FULL), FineTuneJobSpec.parse(FULL), stage, 1, {"version": "1.0"}, trainer, host=HOST
        )
        environment = job["spec"]["template"]["spec"]["containers"][0]["env"]
        named = {"name": "HF_ENDPOINT", "value": "https://hub.example.com"} in environment
        assert named == (stage is Stage.PREPARE)
    assert "HF_ENDPOINT" not in variables(FULL, Stage.PREPARE)


def test_users_labels_cannot_displace_the_operators() -> None:
    labels = build(FULL, Stage.TRAIN)["spec"]["template"]["metadata"]["labels"]
    assert labels == {
        "team": "a",
        "app.kubernetes.io/name": "finetune-job",
        "app.kubernetes.io/managed-by": "finetune-operator",
        "app.kubernetes.io/component": "train",
        "finetune.dev/job": "demo",
        "finetune.dev/stage": "train",
        "finetune.dev/attempt": "1",
    }


def test_the_workspace_claim_belongs_to_the_job() -> None:
    spec = make_spec(workspace={"size": "5Gi", "storageClassName": "fast"})
    claim = build_workspace_claim(make_job(spec), FineTuneJobSpec.parse(spec), "20Gi")
    assert claim["metadata"]["name"] == "demo-workspace"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "5Gi"}},
        "storageClassName": "fast",
    }
    assert claim["metadata"]["ownerReferences"][0]["uid"] == UID
