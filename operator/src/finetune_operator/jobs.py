"""Builders of the objects that the operator creates: batch/v1 Jobs and the workspace's claim."""

from __future__ import annotations

import json
from typing import Any

from finetune_operator.model import DatasetSource, FineTuneJobSpec, KeyRef
from finetune_operator.observation import JobRecord
from finetune_operator.runspec import (
    CHAT_TEMPLATE_MOUNT,
    DATASET_MOUNT,
    DATASET_URL_VARIABLE,
    MODEL_MOUNT,
    MODEL_TOKEN_VARIABLE,
    OUTPUT_MOUNT,
    VALIDATION_MOUNT,
    VALIDATION_URL_VARIABLE,
    WORKSPACE_MOUNT,
)
from finetune_operator.settings import TrainerSettings
from finetune_operator.stages import (
    ATTEMPT_LABEL,
    CONTAINER_NAME,
    GROUP,
    JOB_LABEL,
    KIND,
    RUN_ANNOTATION,
    STAGE_LABEL,
    VERSION,
    Stage,
    child_name,
    workspace_claim_name,
)

RUN_SPEC_FOLDER = "/etc/finetune"
USER_ID = 65532
"""The trainer image's user and group; not root, as the restricted Pod Security level asks."""
TRAIN_GRACE_SECONDS = 120
"""Time between SIGTERM and SIGKILL in which TRAIN saves a checkpoint."""
OTHER_GRACE_SECONDS = 30


def build_workspace_claim(job: JobRecord, spec: FineTuneJobSpec) -> dict[str, Any]:
    """The PersistentVolumeClaim that the stages share."""
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": spec.workspace.size}},
    }
    if spec.workspace.storage_class_name is not None:
        claim["storageClassName"] = spec.workspace.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": workspace_claim_name(job.name),
            "namespace": job.namespace,
            "labels": {**_common_labels(job.name), "app.kubernetes.io/component": "workspace"},
            "ownerReferences": [_owner_reference(job)],
        },
        "spec": claim,
    }


def build_job(
    job: JobRecord,
    spec: FineTuneJobSpec,
    stage: Stage,
    attempt: int,
    run_spec: dict[str, Any],
    trainer: TrainerSettings,
) -> dict[str, Any]:
    """The batch/v1 Job of one attempt of one stage, its run spec inside."""
    labels = {
        **_common_labels(job.name),
        "app.kubernetes.io/component": stage.slug,
        STAGE_LABEL: stage.slug,
        ATTEMPT_LABEL: str(attempt),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": child_name(job.name, stage, attempt),
            "namespace": job.namespace,
            "labels": labels,
            "ownerReferences": [_owner_reference(job)],
        },
        "spec": {
            "parallelism": 1,
            "completions": 1,
            # Attempts belong to the operator, which knows the trainer's reasons; the Job controller only replaces
            # pods that a disruption took.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
                ]
            },
            "template": {
                "metadata": {
                    "labels": {**spec.pod_template.labels, **labels},
                    "annotations": _annotations(spec, stage, run_spec),
                },
                "spec": _pod_spec(job, spec, stage, trainer),
            },
        },
    }


def _pod_spec(
    job: JobRecord, spec: FineTuneJobSpec, stage: Stage, trainer: TrainerSettings
) -> dict[str, Any]:
    volumes = _Volumes(job, spec, stage)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        # Thousands of Services in a namespace would overflow the environment.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TRAIN_GRACE_SECONDS if stage is Stage.TRAIN else OTHER_GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            # Changing the owner of every file of a large volume at each mount would take minutes.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER_NAME,
                "image": trainer.image,
                "imagePullPolicy": trainer.image_pull_policy,
                "args": [stage.slug],
                "env": _environment(spec, stage),
                "ports": [{"name": "telemetry", "containerPort": trainer.telemetry_port}],
                "resources": _resources(spec, stage, trainer),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePath": "/dev/termination-log",
                # Falling back to logs would copy unredacted text into status.
                "terminationMessagePolicy": "File",
                "volumeMounts": volumes.mounts,
            }
        ],
        "volumes": volumes.volumes,
    }
    template = spec.pod_template
    if template.service_account_name is not None:
        pod["serviceAccountName"] = template.service_account_name
    if template.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in template.image_pull_secrets]
    if spec.resources.priority_class_name is not None:
        pod["priorityClassName"] = spec.resources.priority_class_name
    if stage is Stage.TRAIN:
        pod.update(_placement(spec))
    return pod


def _placement(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Where TRAIN may run; the CPU stages must not sit on GPU nodes because of it."""
    resources = spec.resources
    placement: dict[str, Any] = {}
    if resources.node_selector:
        placement["nodeSelector"] = dict(resources.node_selector)
    if resources.tolerations:
        placement["tolerations"] = [
            toleration.model_dump(by_alias=True, exclude_none=True) for toleration in resources.tolerations
        ]
    if resources.runtime_class_name is not None:
        placement["runtimeClassName"] = resources.runtime_class_name
    return placement


def _resources(spec: FineTuneJobSpec, stage: Stage, trainer: TrainerSettings) -> dict[str, Any]:
    asked = {
        Stage.PREPARE: spec.resources.prepare,
        Stage.TRAIN: spec.resources.train,
        Stage.MERGE: spec.resources.merge,
    }[stage]
    default = trainer.resources.of(stage)
    memory = asked.memory or default.memory
    requests = {"cpu": asked.cpu or default.cpu, "memory": memory}
    limits = {"memory": memory}
    if stage is Stage.TRAIN:
        gpus = {spec.resources.gpu_resource_name: str(spec.resources.gpus)}
        requests |= gpus
        limits |= gpus
    return {"requests": requests, "limits": limits}


def _environment(spec: FineTuneJobSpec, stage: Stage) -> list[dict[str, Any]]:
    environment: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    if stage is not Stage.TRAIN:
        # CUDA images say `all`, with which the NVIDIA runtime would hand every GPU to a pod that asked for none.
        environment.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    if stage is Stage.PREPARE:
        dataset, validation = spec.dataset.source.url, spec.dataset.validation.source
        hub = spec.model.source.hugging_face
        if dataset is not None:
            environment.append(_secret_variable(DATASET_URL_VARIABLE, dataset.secret_key_ref))
        if validation is not None and validation.url is not None:
            environment.append(_secret_variable(VALIDATION_URL_VARIABLE, validation.url.secret_key_ref))
        if hub is not None and hub.token_secret_ref is not None:
            environment.append(_secret_variable(MODEL_TOKEN_VARIABLE, hub.token_secret_ref))
    return environment


def _secret_variable(name: str, reference: KeyRef) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}}


def _annotations(spec: FineTuneJobSpec, stage: Stage, run_spec: dict[str, Any]) -> dict[str, str]:
    annotations = {
        **spec.pod_template.annotations,
        RUN_ANNOTATION: json.dumps(run_spec, sort_keys=True, separators=(",", ":")),
    }
    if stage is Stage.TRAIN:
        # Consolidating nodes must not cost GPU hours.
        annotations["karpenter.sh/do-not-disrupt"] = "true"
        annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] = "false"
    return annotations


class _Volumes:
    """Volumes and mounts of one stage. A claim that serves several roles is one volume with several mounts."""

    def __init__(self, job: JobRecord, spec: FineTuneJobSpec, stage: Stage) -> None:
        self.volumes: list[dict[str, Any]] = []
        self.mounts: list[dict[str, Any]] = []
        self._claims: dict[str, str] = {}
        self._mount(
            "run-spec",
            RUN_SPEC_FOLDER,
            {
                "downwardAPI": {
                    "items": [
                        {
                            "path": "run.json",
                            "fieldRef": {"fieldPath": f"metadata.annotations['{RUN_ANNOTATION}']"},
                        }
                    ]
                }
            },
            read_only=True,
        )
        self._mount("tmp", "/tmp", {"emptyDir": {}})  # noqa: S108 - the pod's own
        self._workspace(job, spec)
        if stage is Stage.PREPARE:
            self._sources(spec)
        if stage is Stage.TRAIN:
            # Data loaders and NCCL share memory; the default of 64 MiB is too little.
            self._mount("shared-memory", "/dev/shm", {"emptyDir": {"medium": "Memory"}})  # noqa: S108 - same
        else:
            self._claim("output", OUTPUT_MOUNT, spec.output.destination.persistent_volume_claim.claim_name)

    def _workspace(self, job: JobRecord, spec: FineTuneJobSpec) -> None:
        existing = spec.workspace.existing_claim
        if existing is None:
            self._claim("workspace", WORKSPACE_MOUNT, workspace_claim_name(job.name))
        else:
            # Jobs that share a claim get a folder each; a namesake created later has another uid.
            self._claim("workspace", WORKSPACE_MOUNT, existing, sub_path=job.uid)

    def _sources(self, spec: FineTuneJobSpec) -> None:
        model = spec.model.source.persistent_volume_claim
        if model is not None:
            self._claim("model", MODEL_MOUNT, model.claim_name, read_only=True)
        self._dataset("dataset", DATASET_MOUNT, spec.dataset.source)
        if spec.dataset.validation.source is not None:
            self._dataset("validation", VALIDATION_MOUNT, spec.dataset.validation.source)
        if spec.model.chat_template is not None:
            reference = spec.model.chat_template.config_map_key_ref
            self._config_map("chat-template", CHAT_TEMPLATE_MOUNT, reference)

    def _dataset(self, name: str, path: str, source: DatasetSource) -> None:
        if source.config_map is not None:
            self._config_map(name, path, source.config_map)
        elif source.persistent_volume_claim is not None:
            self._claim(name, path, source.persistent_volume_claim.claim_name, read_only=True)

    def _config_map(self, name: str, path: str, reference: KeyRef) -> None:
        item = {"key": reference.key, "path": reference.key}
        self._mount(name, path, {"configMap": {"name": reference.name, "items": [item]}}, read_only=True)

    def _claim(
        self, name: str, path: str, claim: str, *, read_only: bool = False, sub_path: str | None = None
    ) -> None:
        volume = self._claims.get(claim)
        if volume is None:
            self._claims[claim] = volume = name
            self.volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        self._add_mount(volume, path, read_only=read_only, sub_path=sub_path)

    def _mount(self, name: str, path: str, source: dict[str, Any], *, read_only: bool = False) -> None:
        self.volumes.append({"name": name, **source})
        self._add_mount(name, path, read_only=read_only)

    def _add_mount(self, volume: str, path: str, *, read_only: bool, sub_path: str | None = None) -> None:
        mount: dict[str, Any] = {"name": volume, "mountPath": path}
        if read_only:
            mount["readOnly"] = True
        if sub_path is not None:
            mount["subPath"] = sub_path
        self.mounts.append(mount)


def _common_labels(job_name: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "finetune-job",
        "app.kubernetes.io/managed-by": "finetune-operator",
        JOB_LABEL: job_name,
    }


def _owner_reference(job: JobRecord) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
