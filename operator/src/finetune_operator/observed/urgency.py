"""How soon a change needs a decision: an end frees a GPU, a user waits for an edit, and a full list mostly shows nothing new."""

from __future__ import annotations

from enum import IntEnum

from finetune_operator.observed.observation import ChildJob, JobRecord, Pod


class Urgency(IntEnum):
    """The class of a key in the queue, from the most to the least urgent."""

    ENDING = 0
    """A pod or a Job has ended, or an object is deleted."""
    EDIT = 1
    """A user has created or changed a FineTuneJob."""
    PROGRESS = 2
    """A stage goes on, or the time for another look has come."""
    RESYNC = 3
    """Nothing has changed as far as the operator knows."""


def job_urgency(job: JobRecord) -> Urgency:
    """The urgency of a FineTuneJob that has changed."""
    if job.deleting:
        return Urgency.ENDING
    decided = job.status.get("observedGeneration")
    return Urgency.PROGRESS if decided == job.generation else Urgency.EDIT


def child_urgency(child: ChildJob) -> Urgency:
    """The urgency of a batch/v1 Job that has changed."""
    return Urgency.ENDING if child.finished or child.deleting else Urgency.PROGRESS


def pod_urgency(pod: Pod) -> Urgency:
    """The urgency of a pod that has changed."""
    return Urgency.ENDING if not pod.live or pod.deleting or pod.disrupted else Urgency.PROGRESS
