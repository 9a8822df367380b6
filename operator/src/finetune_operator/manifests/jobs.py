"""Builds the objects that the operator creates: batch/v1 Jobs and the workspace's claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune_operator.api.quantities import format_bytes
from finetune_operator.api.sources import KeyRef
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import (
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
from finetune_operator.contract.credentials import secret_prefixes, secret_variables
from finetune_operator.manifests.volumes import Volumes
from finetune_operator.observed.observation import JobRecord
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.gpus.offers import gpu_taint_keys
from finetune_operator.sizing.hosts import HostNeeds

USER_ID = 65532
"""User and group of the trainer image. It is not root, as the restricted Pod Security level requires."""
TRAIN_GRACE_SECONDS = 120
"""Time between SIGTERM and SIGKILL in which TRAIN saves a checkpoint."""
OTHER_GRACE_SECONDS = 30


def build_workspace_claim(job: JobRecord, spec: FineTuneJobSpec, default_size: str) -> dict[str, Any]:
    """Build the PersistentVolumeClaim that the stages share, with `default_size` if the spec sets no size."""
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": spec.workspace.size or default_size}},
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
    *,
    host: HostNeeds,
    affinity: Mapping[str, Any] | None = None,
    tolerates_gpu_nodes: bool = False,
) -> dict[str, Any]:
    """Build the batch/v1 Job of one attempt of one stage, with its run spec in an annotation.

    `host` are the stage's sizes, used where the spec sets none. `affinity` is the pod's `affinity`. A CPU stage with
    `tolerates_gpu_nodes` may run on GPU nodes, because its volume may be there. TRAIN always tolerates them.
    """
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
            # The operator decides about attempts, because it knows the trainer's reasons. The Job controller only
            # replaces pods that a disruption ended.
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
                "spec": _pod_spec(
                    job, spec, stage, trainer, affinity, host, tolerates_gpu_nodes or stage is Stage.TRAIN
                ),
            },
        },
    }


def _pod_spec(
    job: JobRecord,
    spec: FineTuneJobSpec,
    stage: Stage,
    trainer: TrainerSettings,
    affinity: Mapping[str, Any] | None,
    host: HostNeeds,
    gpu_nodes: bool,  # noqa: FBT001 -- private, and its caller names the value
) -> dict[str, Any]:
    volumes = Volumes(job, spec, stage, host)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        # Thousands of Services in a namespace would exceed the size limit of the environment.
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
                "resources": _resources(spec, stage, host),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePath": "/dev/termination-log",
                # The fallback to logs would copy unredacted text into status.
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
    if affinity:
        pod["affinity"] = dict(affinity)
    if gpu_nodes:
        pod["tolerations"] = _tolerations(spec)
    if stage is Stage.TRAIN:
        # These must not place the CPU stages on GPU nodes.
        if spec.resources.node_selector:
            pod["nodeSelector"] = dict(spec.resources.node_selector)
        if spec.resources.runtime_class_name is not None:
            pod["runtimeClassName"] = spec.resources.runtime_class_name
    return pod


def _tolerations(spec: FineTuneJobSpec) -> list[dict[str, Any]]:
    """The user's tolerations and those for the GPU's taints, which not every cluster adds automatically."""
    given = [item.model_dump(by_alias=True, exclude_none=True) for item in spec.resources.tolerations]
    taints = [{"key": key, "operator": "Exists"} for key in gpu_taint_keys(spec.resources.gpu_resource_name)]
    return [*given, *(item for item in taints if item not in given)]


def _resources(spec: FineTuneJobSpec, stage: Stage, host: HostNeeds) -> dict[str, Any]:
    requested = {
        Stage.PREPARE: spec.resources.prepare,
        Stage.TRAIN: spec.resources.train,
        Stage.MERGE: spec.resources.merge,
    }[stage]
    memory = requested.memory or format_bytes(host.memory_bytes)
    requests = {
        "cpu": requested.cpu or host.cpu,
        "memory": memory,
        "ephemeral-storage": format_bytes(host.scratch_bytes),
    }
    limits = {"memory": memory}
    if stage is Stage.TRAIN:
        gpus = {spec.resources.gpu_resource_name: str(spec.resources.gpus)}
        requests |= gpus
        limits |= gpus
    return {"requests": requests, "limits": limits}


def _environment(spec: FineTuneJobSpec, stage: Stage, trainer: TrainerSettings) -> dict[str, Any]:
    """The container's `env` and, for whole Secrets, `envFrom`. Only PREPARE gets secrets."""
    variables: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    if stage is Stage.TRAIN:
        # Without it, rows of many lengths fragment the GPU's memory until no large tensor fits.
        variables.append({"name": "PYTORCH_ALLOC_CONF", "value": "expandable_segments:True"})
    else:
        # CUDA images set `all`, so the NVIDIA runtime would give every GPU to a pod that requests none.
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
