"""Builds the objects that the operator creates: batch/v1 Jobs and the workspace's claim."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from finetune_operator.api.plan import ONE_GPU, Layout
from finetune_operator.api.pod_merge import NO_DEFAULTS, PodSettings, merge_pods
from finetune_operator.api.pods import PodTemplate
from finetune_operator.api.showback import showback_labels
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import (
    ATTEMPT_LABEL,
    CONTAINER_NAME,
    GROUP,
    JOB_LABEL,
    KIND,
    MERGE_CONTAINER,
    PROBE_CONTAINER,
    QUEUE_LABEL,
    RUN_ANNOTATION,
    STAGE_LABEL,
    VERSION,
    Stage,
    child_name,
    workspace_claim_name,
)
from finetune_operator.contract.network import (
    mounted_bundles,
)
from finetune_operator.contract.tracking import NO_TRACKERS, Trackers
from finetune_operator.manifests.container_resources import container_resources, fit_scratch
from finetune_operator.manifests.environment import stage_environment, step_environment
from finetune_operator.manifests.node_rules import near_each_other, with_own_terms
from finetune_operator.manifests.security import container_security, pod_security
from finetune_operator.manifests.volumes import Volumes
from finetune_operator.observed.observation import JobRecord
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.gpus.offers import gpu_taint_keys
from finetune_operator.sizing.hosts import HostNeeds

TRAIN_GRACE_SECONDS = 120
"""Time between SIGTERM and SIGKILL in which TRAIN saves a checkpoint."""
OTHER_GRACE_SECONDS = 30
REPORT_SECONDS = 1800
"""Time in which a report must be published. The workspace of a job that has succeeded stays as long."""


def build_workspace_claim(
    job: JobRecord,
    spec: FineTuneJobSpec,
    default_size: str,
    defaults: PodTemplate = NO_DEFAULTS,
    allowed_labels: Collection[str] = (),
    *,
    shared: bool = False,
) -> dict[str, Any]:
    """Build the PersistentVolumeClaim that the stages share, with `default_size` if the spec sets no size.

    With `shared`, pods on several nodes use it at the same time. `defaults` are the chart's additions to
    labels and annotations, and `allowed_labels` are its keys for showback.
    """
    pods = merge_pods(defaults, spec, Stage.PREPARE)
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteMany" if shared else "ReadWriteOnce"],
        "resources": {"requests": {"storage": spec.workspace.size or default_size}},
    }
    if spec.workspace.storage_class_name is not None:
        claim["storageClassName"] = spec.workspace.storage_class_name
    labels = {
        **showback_labels(job.labels, allowed_labels),
        **_common_labels(job.name),
        "app.kubernetes.io/component": "workspace",
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _object_metadata(job, workspace_claim_name(job.name), labels, pods),
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
    read_only_claims: Collection[str] = (),
    allowed_labels: Collection[str] = (),
    trackers: Trackers = NO_TRACKERS,
    layout: Layout = ONE_GPU,
) -> dict[str, Any]:
    """Build the batch/v1 Job of one attempt of one stage, with its run spec in an annotation.

    `host` are the stage's sizes, used where the spec sets none. `affinity` is the pod's `affinity`. A CPU stage with
    `tolerates_gpu_nodes` may run on GPU nodes, because its volume may be there. TRAIN always tolerates them.
    `read_only_claims` are the claims that nobody can write to. `allowed_labels` are the keys for showback, and `trackers`
    are those of the run spec. A Job with a queue is suspended: the queue starts it. `layout` has the GPUs of TRAIN: with
    several nodes, the Job has an indexed pod for each.
    """
    pods = merge_pods(trainer.defaults, spec, Stage.MERGE if stage is Stage.REPORT else stage)
    queue = spec.queue_of(stage)
    host = fit_scratch(host, pods)
    labels = {
        **showback_labels(job.labels, allowed_labels),
        **_common_labels(job.name),
        "app.kubernetes.io/component": stage.slug,
        STAGE_LABEL: stage.slug,
        ATTEMPT_LABEL: str(attempt),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _object_metadata(
            job,
            child_name(job.name, stage, attempt),
            # Not for the pod: Kueue would count it once more if it manages pods, too.
            {**labels, **({QUEUE_LABEL: queue} if queue else {})},
            pods,
        ),
        "spec": {
            **({"suspend": True} if queue else {}),
            "parallelism": layout.nodes,
            "completions": layout.nodes,
            **({"completionMode": "Indexed"} if layout.nodes > 1 else {}),
            # The operator decides about attempts, because it knows the trainer's reasons. The Job controller only
            # replaces pods that a disruption ended.
            "backoffLimit": 0,
            **({"activeDeadlineSeconds": REPORT_SECONDS} if stage is Stage.REPORT else {}),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        # A new pod cannot join ranks that have lost one. All begin again from the checkpoint.
                        "action": "Ignore" if layout.nodes == 1 else "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    }
                ]
            },
            "template": {
                "metadata": {
                    "labels": {**pods.labels, **labels},
                    "annotations": _annotations(pods, stage, run_spec),
                },
                "spec": _pod_spec(
                    spec,
                    stage,
                    trainer,
                    pods,
                    near_each_other(with_own_terms(affinity, pods.rules), labels, layout, trainer),
                    host,
                    Volumes(
                        job,
                        spec,
                        stage,
                        host,
                        read_only_claims,
                        mounted_bundles(spec.network, trainer.network),
                    ),
                    trackers,
                    layout,
                    tolerates_gpu_nodes or stage is Stage.TRAIN,
                ),
            },
        },
    }


def _pod_spec(
    spec: FineTuneJobSpec,
    stage: Stage,
    trainer: TrainerSettings,
    pods: PodSettings,
    affinity: Mapping[str, Any] | None,
    host: HostNeeds,
    volumes: Volumes,
    trackers: Trackers,
    layout: Layout,
    gpu_nodes: bool,  # noqa: FBT001 -- private, and its caller names the value
) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        # Thousands of Services in a namespace would exceed the size limit of the environment.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TRAIN_GRACE_SECONDS if stage is Stage.TRAIN else OTHER_GRACE_SECONDS,
        "securityContext": pod_security(pods.security),
        **_containers(spec, stage, trainer, pods, host, volumes, trackers, layout),
        "volumes": volumes.volumes,
    }
    optional = {
        "serviceAccountName": pods.service_account_name,
        "imagePullSecrets": [{"name": name} for name in pods.image_pull_secrets],
        "priorityClassName": pods.priority_class_name,
        "runtimeClassName": pods.runtime_class_name,
        "schedulerName": pods.scheduler_name,
        "nodeSelector": pods.rules.node_selector,
        "affinity": affinity,
        "tolerations": _tolerations(spec, pods, gpu_nodes=gpu_nodes),
    }
    return {**pod, **{member: value for member, value in optional.items() if value}}


def _containers(
    spec: FineTuneJobSpec,
    stage: Stage,
    trainer: TrainerSettings,
    pods: PodSettings,
    host: HostNeeds,
    volumes: Volumes,
    trackers: Trackers,
    layout: Layout,
) -> dict[str, Any]:
    """The trainer, and with destinations or trackers the step of the stage that runs before it in a container of its own.

    Only the step that tries the destinations and the one that publishes have the credentials. They run no model.
    """

    def container(name: str, step: str = "") -> dict[str, Any]:
        return {
            "name": name,
            "image": trainer.image,
            "imagePullPolicy": trainer.image_pull_policy,
            "args": [stage.slug],
            **(
                step_environment(spec, trainer, trackers, step)
                if step
                else stage_environment(spec, stage, trainer, volumes, layout)
            ),
            "ports": [{"name": "telemetry", "containerPort": trainer.telemetry_port}],
            "resources": container_resources(spec, stage, trainer, host, pods, layout),
            "securityContext": container_security(pods.security),
            "terminationMessagePath": "/dev/termination-log",
            # The fallback to logs would copy unredacted text into status.
            "terminationMessagePolicy": "File",
            "volumeMounts": volumes.mounts_of_step() if step else volumes.mounts_of_stage(),
        }

    if stage is Stage.REPORT:
        return {"containers": [container(CONTAINER_NAME, "Report")]}
    if stage is Stage.TRAIN or (spec.output.destinations is None and not (trackers and stage is Stage.MERGE)):
        return {"containers": [container(CONTAINER_NAME)]}
    if stage is Stage.PREPARE:
        return {
            "initContainers": [container(PROBE_CONTAINER, "Probe")],
            "containers": [container(CONTAINER_NAME)],
        }
    return {
        "initContainers": [container(MERGE_CONTAINER)],
        "containers": [container(CONTAINER_NAME, "Publish")],
    }


def _tolerations(spec: FineTuneJobSpec, pods: PodSettings, *, gpu_nodes: bool) -> list[dict[str, Any]]:
    """The pod's own tolerations. On GPU nodes also the job's, and those for the GPU's taints.

    Not every cluster adds the latter automatically.
    """
    given = [*pods.rules.tolerations, *(spec.resources.tolerations if gpu_nodes else ())]
    found = [item.model_dump(by_alias=True, exclude_none=True) for item in dict.fromkeys(given)]
    if not gpu_nodes:
        return found
    taints = [{"key": key, "operator": "Exists"} for key in gpu_taint_keys(spec.resources.gpu_resource_name)]
    return [*found, *(item for item in taints if item not in found)]


def _annotations(pods: PodSettings, stage: Stage, run_spec: dict[str, Any]) -> dict[str, str]:
    annotations = {
        **pods.annotations,
        # Escapes would multiply the size of other scripts, and all annotations together have 256 KiB.
        RUN_ANNOTATION: json.dumps(run_spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
    }
    if stage is Stage.TRAIN:
        # Consolidating nodes must not cost GPU hours.
        annotations["karpenter.sh/do-not-disrupt"] = "true"
        annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] = "false"
    return annotations


def _object_metadata(
    job: JobRecord, name: str, labels: Mapping[str, str], pods: PodSettings
) -> dict[str, Any]:
    """The metadata of a Job or claim of this FineTuneJob."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": job.namespace,
        "labels": {**pods.object_labels, **labels},
        "ownerReferences": [_owner_reference(job)],
    }
    if pods.object_annotations:
        metadata["annotations"] = dict(pods.object_annotations)
    return metadata


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
