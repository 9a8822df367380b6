"""Projects API objects into the small values of `observed.observation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.formats import parse_time
from finetune_operator.api.stages import (
    CONTAINER_NAME,
    INDEX_ANNOTATION,
    JOB_SET,
    KIND,
    PLACEMENT_ANNOTATION,
    POD_DEFAULTS_ANNOTATION,
    QUEUE_LABEL,
    SUSPENSION_ANNOTATION,
)
from finetune_operator.observed.container_state import (
    container_end,
    start_of,
    state_of_work,
    time_of,
    why_not_started,
)
from finetune_operator.observed.observation import ChildJob, Claim, JobRecord, Pod
from finetune_operator.observed.ownership import (
    attempt_of,
    controller_uid,
    former_job_uid,
    is_watched,
    job_set_uid,
    run_uid,
)


def project_job(body: Mapping[str, Any]) -> JobRecord:
    """Project a FineTuneJob."""
    metadata = body["metadata"]
    return JobRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        resource_version=metadata["resourceVersion"],
        created=parse_time(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        spec=dict(body.get("spec") or {}),
        status=dict(body.get("status") or {}),
        labels=dict(metadata.get("labels") or {}),
    )


def project_child(body: Mapping[str, Any]) -> ChildJob | None:
    """Project a batch/v1 Job or a JobSet; None if no FineTuneJob controls it, even if it has the labels.

    Its name says the stage and the attempt, because anybody may change its labels.
    """
    metadata = body["metadata"]
    owner_uid = controller_uid(metadata, KIND)
    annotations = metadata.get("annotations") or {}
    attempt = attempt_of(metadata)
    if owner_uid is None or attempt is None:
        return None
    members = body["spec"].get("replicatedJobs")
    spec = members[0]["template"]["spec"] if members else body["spec"]
    queue = (metadata.get("labels") or {}).get(QUEUE_LABEL, "")
    listed = (body.get("status") or {}).get("conditions") or ()
    conditions = {each["type"]: each.get("message", "") for each in listed if each.get("status") == "True"}
    # A Job that a queue has just resumed counts as suspended until the Job controller creates its pod.
    suspended = bool(body["spec"].get("suspend", False) or (queue and "Suspended" in conditions))
    resumed = [each for each in listed if each["type"] == "Suspended" and each.get("status") == "False"]
    return ChildJob(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=owner_uid,
        resource_version=metadata["resourceVersion"],
        stage=attempt[0],
        attempt=attempt[1],
        created=parse_time(metadata["creationTimestamp"]),
        suspended=suspended,
        deleting="deletionTimestamp" in metadata,
        finished=not _ENDS.isdisjoint(conditions),
        failure=conditions.get("Failed"),
        placement=annotations.get(PLACEMENT_ANNOTATION, ""),
        pod_defaults=annotations.get(POD_DEFAULTS_ANNOTATION, ""),
        image=_trainer_image(spec),
        held=annotations[SUSPENSION_ANNOTATION] == "true"
        if SUSPENSION_ANNOTATION in annotations
        else suspended,
        queue=queue,
        resumed=time_of(resumed[0], "lastTransitionTime") if resumed else None,
        pods=int(spec.get("completions") or 1),
        kind="Job" if spec is body["spec"] else JOB_SET,
        watched=is_watched(metadata),
    )


_ENDS = {"Complete", "Completed", "Failed"}
"""The conditions of the end: of a Job the first and the last one, of a JobSet the second and the last one."""


def _trainer_image(spec: Mapping[str, Any]) -> str:
    pod = (spec.get("template") or {}).get("spec") or {}
    images = [each.get("image", "") for each in pod.get("containers") or () if each["name"] == CONTAINER_NAME]
    return images[0] if images else ""


def project_pod(body: Mapping[str, Any]) -> Pod | None:
    """Project a pod; None if no batch/v1 Job controls it, or did so until somebody deleted the Job without its pods."""
    metadata = body["metadata"]
    if (
        owner_uid := job_set_uid(metadata) or controller_uid(metadata, "Job") or former_job_uid(metadata)
    ) is None:
        return None
    status = body.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    container: Mapping[str, Any] = next(
        (entry for entry in status.get("containerStatuses") or () if entry["name"] == CONTAINER_NAME), {}
    )
    state = state_of_work(container, status.get("initContainerStatuses") or ())
    waiting = state.get("waiting")
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=owner_uid,
        resource_version=metadata["resourceVersion"],
        created=parse_time(metadata["creationTimestamp"]),
        phase=status.get("phase", "Pending"),
        ip=status.get("podIP", ""),
        node=body.get("spec", {}).get("nodeName", ""),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        deleting="deletionTimestamp" in metadata,
        disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True",
        unschedulable=(
            scheduled.get("message", "")
            if scheduled.get("status") == "False" and scheduled.get("reason") in _UNSCHEDULED
            else None
        ),
        waiting=why_not_started(waiting, status.get("initContainerStatuses") or ()),
        running="running" in state,
        end=container_end(state.get("terminated")),
        idle=bool(container)
        and not any(
            "running" in (entry.get("state") or {})
            for kind in ("initContainerStatuses", "containerStatuses")
            for entry in status.get(kind) or ()
        ),
        scheduled=time_of(scheduled, "lastTransitionTime") if scheduled.get("status") == "True" else None,
        started=start_of(state),
        deletion_time=time_of(metadata, "deletionTimestamp"),
        watched=is_watched(metadata),
        host_network=bool(body.get("spec", {}).get("hostNetwork")),
        index=_index(metadata),
        job_uid=run_uid(metadata),
    )


def _index(metadata: Mapping[str, Any]) -> int:
    """The pod's number. Anybody may change an annotation, so one that is no number counts as 0."""
    text = (metadata.get("annotations") or {}).get(INDEX_ANNOTATION, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def project_claim(body: Mapping[str, Any]) -> Claim | None:
    """Project a PersistentVolumeClaim; None if no FineTuneJob controls it."""
    metadata = body["metadata"]
    if (owner_uid := controller_uid(metadata, KIND)) is None:
        return None
    return Claim(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=owner_uid,
        resource_version=metadata["resourceVersion"],
        deleting="deletionTimestamp" in metadata,
        watched=is_watched(metadata),
    )


_UNSCHEDULED = {"Unschedulable", "SchedulerError", "SchedulingGated"}
