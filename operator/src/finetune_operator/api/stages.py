"""The stages, their order, and the names of their objects, labels and annotations."""

from __future__ import annotations

import re
from enum import StrEnum

from finetune_operator.api.reasons import Reason

GROUP = "finetune.dev"
VERSION = "v1alpha1"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"

JOB_LABEL = "finetune.dev/job"
STAGE_LABEL = "finetune.dev/stage"
ATTEMPT_LABEL = "finetune.dev/attempt"
CONTROLLER_LABEL = "batch.kubernetes.io/controller-uid"
"""The uid of the Job, which the Job controller sets on each of its pods."""
JOB_SET = "JobSet"
JOB_SET_LABEL = "jobset.sigs.k8s.io/jobset-uid"
"""The uid of the JobSet, which its controller sets on the pods of its Jobs."""
RUN_ANNOTATION = "finetune.dev/run"
PLACEMENT_ANNOTATION = "finetune.dev/placement"
"""Annotation of TRAIN's Job: the digest of the plan and the GPUs for which it was created (lifecycle/sizing.py)."""
POD_DEFAULTS_ANNOTATION = "finetune.dev/pod-defaults"
"""Annotation of a stage's Job: the digest of the pod defaults with which it was created (lifecycle/pod_defaults.py)."""
SUSPENSION_ANNOTATION = "finetune.dev/suspended-by-operator"
"""Annotation of a stage's Job: `true` if the operator suspended it, otherwise `false`.

Only the operator's own suspension may end by the operator. A Job without it is from an operator before this annotation,
which took every suspension for its own.
"""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Label of a stage's Job: the LocalQueue of Kueue, which then decides when the Job runs."""
CONTAINER_NAME = "trainer"
PROBE_CONTAINER = "destination-probe"
"""Init container of PREPARE that tries the destinations with their credentials."""
MERGE_CONTAINER = "merge"
"""Init container of MERGE if the job has `output.destinations`. It merges without credentials, and the trainer publishes."""
STEP_CONTAINERS = (PROBE_CONTAINER, MERGE_CONTAINER)
POD_ADDRESS_VARIABLE = "FINETUNE_POD_ADDRESS"
"""Variable of the pods of TRAIN on several nodes: the pod's own IP address."""
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
"""The number of a pod, which the Job controller sets on each pod of an Indexed Job."""
STEP_VARIABLE = "FINETUNE_STEP"
"""Variable of the containers that hold credentials of destinations: `Probe`, `Publish` or `Report`, their only work."""


class Stage(StrEnum):
    """A stage of a FineTuneJob, each a batch/v1 Job."""

    PREPARE = "Prepare"
    TRAIN = "Train"
    MERGE = "Merge"
    REPORT = "Report"
    """Copies the report after the end of the job. It is no part of the work, and its outcome is a condition only."""

    @property
    def slug(self) -> str:
        """The lower-case name, for the trainer's subcommand, the label's value and the Job's name."""
        return self.value.lower()

    @property
    def active_reason(self) -> Reason:
        """The reason of the Reconciling condition while this stage runs."""
        return _ACTIVE_REASONS[self]

    @property
    def next(self) -> Stage | None:
        """The stage after this one, or None for the last stage."""
        return {Stage.PREPARE: Stage.TRAIN, Stage.TRAIN: Stage.MERGE}.get(self)


WORK_STAGES = (Stage.PREPARE, Stage.TRAIN, Stage.MERGE)
"""The stages that make the model, in their order."""


REPLICATED_JOB = "r"
"""Name of the only member of a JobSet. It is short, because names of pods begin with it, and they have a limit."""
_CHILD_NAME = re.compile(rf"(.+)-(prepare|train|merge|report)-(0|[1-9][0-9]*)(?:-{REPLICATED_JOB}-0)?")
_ACTIVE_REASONS = {
    Stage.PREPARE: Reason.PREPARING,
    Stage.TRAIN: Reason.TRAINING,
    Stage.MERGE: Reason.MERGING,
}


def job_of_set(name: str) -> str:
    """Name of the only Job that the JobSet `name` makes."""
    return f"{name}-{REPLICATED_JOB}-0"


def child_name(job_name: str, stage: Stage, attempt: int) -> str:
    """Name of the batch/v1 Job of one attempt. It is deterministic, so that the Job cannot be created twice."""
    return f"{job_name}-{stage.slug}-{attempt}"


def parse_child_name(name: str) -> tuple[str, Stage, int] | None:
    """The FineTuneJob, stage and attempt that a name of `child_name` stands for; None for any other name.

    The Job that a JobSet of this name makes has a name of its own (`<name of the JobSet>-r-0`), which stands for the same.
    """
    found = _CHILD_NAME.fullmatch(name)
    return None if found is None else (found[1], Stage(found[2].capitalize()), int(found[3]))


def workspace_claim_name(job_name: str) -> str:
    """Name of the workspace's PersistentVolumeClaim."""
    return f"{job_name}-workspace"
