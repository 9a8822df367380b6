"""Builders of the objects that the operator creates: batch/v1 Jobs and the workspace's claim."""

from __future__ import annotations

import json
from typing import Any

from finetune_operator.credentials import secret_prefixes, secret_variables
from finetune_operator.model import FineTuneJobSpec
from finetune_operator.observation import JobRecord
from finetune_operator.settings import TrainerSettings
from finetune_operator.sources import KeyRef
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
from finetune_operator.volumes import Volumes

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
    volumes = Volumes(job, spec, stage)
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
                **_environment(spec, stage, trainer),
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


def _environment(spec: FineTuneJobSpec, stage: Stage, trainer: TrainerSettings) -> dict[str, Any]:
    """The container's `env` and, where whole Secrets are asked for, `envFrom`; secrets are PREPARE's alone."""
    variables: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    if stage is not Stage.TRAIN:
        # CUDA images say `all`, with which the NVIDIA runtime would hand every GPU to a pod that asked for none.
        variables.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    environment: dict[str, Any] = {"env": variables}
    if stage is Stage.PREPARE:
        if trainer.hugging_face_endpoint:
            variables.append({"name": "HF_ENDPOINT", "value": trainer.hugging_face_endpoint})
        variables += [_secret_variable(item.variable, item.reference) for item in secret_variables(spec)]
        prefixes = [
            {"prefix": item.prefix, "secretRef": {"name": item.secret}} for item in secret_prefixes(spec)
        ]
        if prefixes:
            environment["envFrom"] = prefixes
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
