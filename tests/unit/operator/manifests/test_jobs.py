from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
from finetune_operator.api.pods import parse_pod_defaults
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
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


def test_a_queue_starts_the_job_and_does_not_count_its_pod_once_more() -> None:
    body = build(make_spec(queueName="gpus", podTemplate={"objectLabels": {"team": "a"}}), Stage.TRAIN)
    labels = body["metadata"]["labels"]
    assert (labels["kueue.x-k8s.io/queue-name"], labels["team"], body["spec"]["suspend"]) == (
        "gpus",
        "a",
        True,
    )
    assert "kueue.x-k8s.io/queue-name" not in body["spec"]["template"]["metadata"]["labels"]
    without = build(make_spec(queueName="gpus"), Stage.PREPARE)
    assert "kueue.x-k8s.io/queue-name" not in without["metadata"]["labels"]
    assert "suspend" not in without["spec"]


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


def test_merge_is_told_its_image_for_the_manifest_of_the_artifacts() -> None:
    assert variables(make_spec(), Stage.MERGE)["FINETUNE_IMAGE"]["value"] == TRAINER.image
    assert "FINETUNE_IMAGE" not in variables(make_spec(), Stage.PREPARE)


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_pods_meet_the_restricted_security_level(stage: Stage) -> None:
    pod, trainer = pod_spec(FULL, stage), container(FULL, stage)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert trainer["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {
        "configMap",
        "downwardAPI",
        "emptyDir",
        "persistentVolumeClaim",
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


@pytest.mark.parametrize("stage", WORK_STAGES)
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
    for stage in WORK_STAGES:
        pod, trainer = pod_spec(FULL, stage), container(FULL, stage)
        train = stage is Stage.TRAIN
        assert ("example.com/gpu" in trainer["resources"]["limits"]) == train
        for field in ("tolerations", "runtimeClassName"):
            assert (field in pod) == train, field
        assert pod["nodeSelector"] == ({"pool": "gpu"} if train else {"kubernetes.io/os": "linux"})
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
    for stage in WORK_STAGES:
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


EVERYTHING: dict[str, Any] = {
    "labels": {"team": "chart"},
    "annotations": {"example.com/cost": "42"},
    "objectLabels": {"owner": "platform"},
    "objectAnnotations": {"example.com/why": "tuning"},
    "nodeSelector": {"disk": "ssd"},
    "nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"]}]}
    ],
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccountName": "tuner",
    "runtimeClassName": "kata",
    "priorityClassName": "batch",
    "schedulerName": "own-scheduler",
    "cpuLimit": "Request",
    "ephemeralStorage": "3Gi",
    "ephemeralStorageLimit": "4Gi",
    "securityContext": {
        "runAsUser": 1000650000,
        "runAsGroup": 1000650000,
        "fsGroup": 1000650000,
        "fsGroupChangePolicy": "Always",
        "supplementalGroups": [5000],
        "supplementalGroupsPolicy": "Strict",
        "seccompProfile": {"type": "Localhost", "localhostProfile": "train.json"},
        "appArmorProfile": {"type": "RuntimeDefault"},
        "seLinuxOptions": {"type": "container_t", "level": "s0:c26,c5"},
    },
    "train": {"nodeSelector": {"pool": "gpu"}, "labels": {"stage": "own"}},
}
GPU_AFFINITY: dict[str, Any] = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
                    ]
                }
            ]
        }
    }
}


def build_with(defaults: dict[str, Any], stage: Stage, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    spec = spec or make_spec()
    trainer = TrainerSettings(image="registry.example/finetune/trainer:1", pod_defaults=defaults)
    parsed = FineTuneJobSpec.parse(spec)
    return build_job(
        make_job(spec), parsed, stage, 1, {"version": "1.0"}, trainer, host=HOST, affinity=GPU_AFFINITY
    )


@pytest.mark.parametrize("stage", WORK_STAGES)
@pytest.mark.parametrize("place", ["chart", "job"])
def test_jobs_with_every_addition_are_valid_kubernetes_objects(stage: Stage, place: str) -> None:
    chart, own = (EVERYTHING, {}) if place == "chart" else ({}, EVERYTHING)
    body = build_with(chart, stage, make_spec(podTemplate=own))
    kubernetes_validate.validate(body, "1.36", strict=True)
    template = body["spec"]["template"]
    assert body["metadata"]["labels"]["owner"] == "platform"
    assert body["metadata"]["annotations"] == {"example.com/why": "tuning"}
    assert template["metadata"]["labels"].get("stage") == ("own" if stage is Stage.TRAIN else None)
    assert template["metadata"]["labels"]["team"] == "chart"
    assert template["metadata"]["annotations"]["example.com/cost"] == "42"
    pod = template["spec"]
    assert pod["schedulerName"] == "own-scheduler"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"]["disk"] == "ssd"
    assert {"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_no_addition_weakens_what_the_operator_needs(stage: Stage) -> None:
    plain, full = build_with({}, stage), build_with(EVERYTHING, stage)
    before, after = plain["spec"]["template"], full["spec"]["template"]
    assert before["metadata"]["labels"].items() <= after["metadata"]["labels"].items()
    assert before["metadata"]["annotations"].items() <= after["metadata"]["annotations"].items()
    for field in ("restartPolicy", "automountServiceAccountToken", "enableServiceLinks"):
        assert before["spec"][field] == after["spec"][field]
    (own,), (trainer,) = before["spec"]["containers"], after["spec"]["containers"]
    for field in ("image", "args", "env", "volumeMounts", "terminationMessagePolicy"):
        assert own[field] == trainer[field]
    confined = {key: value for key, value in own["securityContext"].items() if key != "seccompProfile"}
    assert confined.items() <= trainer["securityContext"].items()
    (term,) = after["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    gpu = GPU_AFFINITY["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][
        0
    ]
    assert gpu["matchExpressions"][0] in term["matchExpressions"]


def test_the_claim_has_the_labels_and_annotations_that_policies_demand() -> None:
    defaults = parse_pod_defaults(EVERYTHING)
    claim = build_workspace_claim(make_job(make_spec()), FineTuneJobSpec.parse(make_spec()), "20Gi", defaults)
    kubernetes_validate.validate(claim, "1.36", strict=True)
    assert claim["metadata"]["labels"]["owner"] == "platform"
    assert claim["metadata"]["labels"]["finetune.dev/job"] == "demo"
    assert claim["metadata"]["annotations"] == {"example.com/why": "tuning"}


def test_a_claim_that_nobody_can_write_to_is_attached_read_only() -> None:
    spec = make_spec()
    body = build_job(
        make_job(spec),
        FineTuneJobSpec.parse(spec),
        Stage.PREPARE,
        0,
        {},
        TRAINER,
        host=HOST,
        read_only_claims=["models"],
    )
    volumes = {item["name"]: item for item in body["spec"]["template"]["spec"]["volumes"]}
    assert volumes["model"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert "readOnly" not in volumes["workspace"]["persistentVolumeClaim"]


def test_a_run_spec_in_another_script_takes_no_more_room_than_its_text() -> None:
    text = "字" * 1000
    job = build_job(
        make_job(FULL), FineTuneJobSpec.parse(FULL), Stage.TRAIN, 1, {"a": text}, TRAINER, host=HOST
    )
    annotation = job["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run"]
    assert annotation == f'{{"a":"{text}"}}'


LABELLED = {"team": "vision", "argocd.argoproj.io/instance": "app", "finetune.dev/stage": "merge"}


def test_only_allowed_labels_of_the_job_reach_its_children() -> None:
    spec = make_spec(podTemplate={"labels": {"team": "other", "tier": "batch"}})
    parsed = FineTuneJobSpec.parse(spec)
    job = make_job(spec, labels=LABELLED)
    allowed = ("team", "project")
    body = build_job(
        job, parsed, Stage.TRAIN, 0, {"version": "1.0"}, TRAINER, host=HOST, allowed_labels=allowed
    )
    pod = body["spec"]["template"]["metadata"]["labels"]
    claim = build_workspace_claim(job, parsed, "1Gi", allowed_labels=allowed)
    for labels in (body["metadata"]["labels"], pod, claim["metadata"]["labels"]):
        assert labels["team"] == "vision"
        assert "argocd.argoproj.io/instance" not in labels
        assert labels["app.kubernetes.io/managed-by"] == "finetune-operator"
    assert pod["tier"] == "batch"
    assert pod["finetune.dev/stage"] == "train"
    assert (
        "team"
        not in build_job(job, parsed, Stage.TRAIN, 0, {"version": "1.0"}, TRAINER, host=HOST)["metadata"][
            "labels"
        ]
    )
