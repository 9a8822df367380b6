"""Reasons in conditions, attempts and failures, each with its class, which decides about a retry.

The texts are in contract/reasons.json. A contract test keeps both lists equal.
"""

from __future__ import annotations

from enum import StrEnum


class ReasonClass(StrEnum):
    """The operator's reaction to a reason."""

    PERMANENT = "Permanent"
    """The same input fails again, so the stage is never retried."""
    RETRYABLE = "Retryable"
    """Another attempt may succeed."""
    INTERRUPTED = "Interrupted"
    """The state is saved, and resuming does not count as an attempt."""
    WAITING = "Waiting"
    """Something outside the job must change. Then the job resumes by itself."""
    STALLED = "Stalled"
    """No existing node, volume or GPU profile is suitable, or the policy forbids the job. Every change of these starts a
    new decision."""
    ACTIVE = "Active"
    """The job makes progress."""
    TERMINAL = "Terminal"
    """The job or stage is finished."""


class Reason(StrEnum):
    """Reasons that the operator writes itself."""

    INVALID_SPEC = "InvalidSpec"
    STAGE_LOST = "StageLost"
    NO_PROGRESS = "NoProgress"
    DISRUPTED = "Disrupted"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    SCRATCH_FULL = "ScratchFull"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    POD_STUCK = "PodStuck"
    UNSCHEDULABLE = "Unschedulable"
    CHILD_REFUSED = "ChildRefused"
    VERSION_SKEW = "VersionSkew"
    JOB_SUSPENDED = "JobSuspended"
    QUOTA_PENDING = "QuotaPending"
    NODE_LOST = "NodeLost"
    WAITING_FOR_GPU = "WaitingForGpu"
    WAITING_FOR_DESTINATION = "WaitingForDestination"
    DOES_NOT_FIT = "DoesNotFit"
    GPU_NOT_SUPPORTED = "GpuNotSupported"
    GPU_MEMORY_UNKNOWN = "GpuMemoryUnknown"
    WORKSPACE_ZONE_MISMATCH = "WorkspaceZoneMismatch"
    POLICY_DENIED = "PolicyDenied"
    MODEL_SIZE_UNKNOWN = "ModelSizeUnknown"
    MODEL_CACHE_NOT_SHARED = "ModelCacheNotShared"
    WORKSPACE_NOT_SHARED = "WorkspaceNotShared"
    WORKSPACE_TOO_SMALL = "WorkspaceTooSmall"
    PENDING = "Pending"
    PREPARING = "Preparing"
    TRAINING = "Training"
    MERGING = "Merging"
    BACKING_OFF = "BackingOff"
    SUSPENDED_BY_USER = "SuspendedByUser"
    RUNNING = "Running"
    PROGRESSING = "Progressing"
    FINISHED = "Finished"
    COMPLETED = "Completed"
    AWAITING_STAGE = "AwaitingStage"
    STAGE_SUCCEEDED = "StageSucceeded"
    STAGE_FAILED = "StageFailed"
    DATASET_WARNINGS = "DatasetWarnings"
    MERGE_WARNINGS = "MergeWarnings"
    PLAN_WARNINGS = "PlanWarnings"
    RUN_RECORDED = "RunRecorded"
    TRACKER_FAILED = "TrackerFailed"
    UNKNOWN_FIELDS = "UnknownFields"
    FIELDS_KNOWN = "FieldsKnown"
    STATUS_REFUSED = "StatusRefused"
    STATUS_COMPLETE = "StatusComplete"
    PUBLISHING_REPORT = "PublishingReport"
    REPORT_PUBLISHED = "ReportPublished"
    REPORT_LOST = "ReportLost"
    NO_REPORT = "NoReport"


OPERATOR_CLASSES: dict[Reason, ReasonClass] = {
    Reason.INVALID_SPEC: ReasonClass.PERMANENT,
    Reason.STAGE_LOST: ReasonClass.RETRYABLE,
    Reason.NO_PROGRESS: ReasonClass.RETRYABLE,
    Reason.DISRUPTED: ReasonClass.INTERRUPTED,
    Reason.HOST_OUT_OF_MEMORY: ReasonClass.PERMANENT,
    Reason.SCRATCH_FULL: ReasonClass.PERMANENT,
    Reason.DEADLINE_EXCEEDED: ReasonClass.PERMANENT,
    Reason.POD_STUCK: ReasonClass.WAITING,
    Reason.UNSCHEDULABLE: ReasonClass.WAITING,
    Reason.CHILD_REFUSED: ReasonClass.WAITING,
    Reason.VERSION_SKEW: ReasonClass.WAITING,
    Reason.JOB_SUSPENDED: ReasonClass.WAITING,
    Reason.QUOTA_PENDING: ReasonClass.WAITING,
    Reason.NODE_LOST: ReasonClass.WAITING,
    Reason.WAITING_FOR_GPU: ReasonClass.WAITING,
    Reason.WAITING_FOR_DESTINATION: ReasonClass.WAITING,
    Reason.DOES_NOT_FIT: ReasonClass.STALLED,
    Reason.GPU_NOT_SUPPORTED: ReasonClass.STALLED,
    Reason.GPU_MEMORY_UNKNOWN: ReasonClass.STALLED,
    Reason.WORKSPACE_ZONE_MISMATCH: ReasonClass.STALLED,
    Reason.POLICY_DENIED: ReasonClass.STALLED,
    Reason.MODEL_SIZE_UNKNOWN: ReasonClass.PERMANENT,
    Reason.MODEL_CACHE_NOT_SHARED: ReasonClass.PERMANENT,
    Reason.WORKSPACE_NOT_SHARED: ReasonClass.PERMANENT,
    Reason.WORKSPACE_TOO_SMALL: ReasonClass.PERMANENT,
    Reason.PENDING: ReasonClass.ACTIVE,
    Reason.PREPARING: ReasonClass.ACTIVE,
    Reason.TRAINING: ReasonClass.ACTIVE,
    Reason.MERGING: ReasonClass.ACTIVE,
    Reason.BACKING_OFF: ReasonClass.ACTIVE,
    Reason.SUSPENDED_BY_USER: ReasonClass.ACTIVE,
    Reason.RUNNING: ReasonClass.ACTIVE,
    Reason.PROGRESSING: ReasonClass.ACTIVE,
    Reason.FINISHED: ReasonClass.TERMINAL,
    Reason.COMPLETED: ReasonClass.TERMINAL,
    Reason.AWAITING_STAGE: ReasonClass.ACTIVE,
    Reason.STAGE_SUCCEEDED: ReasonClass.TERMINAL,
    Reason.STAGE_FAILED: ReasonClass.TERMINAL,
    Reason.DATASET_WARNINGS: ReasonClass.ACTIVE,
    Reason.MERGE_WARNINGS: ReasonClass.ACTIVE,
    Reason.PLAN_WARNINGS: ReasonClass.ACTIVE,
    Reason.RUN_RECORDED: ReasonClass.TERMINAL,
    Reason.TRACKER_FAILED: ReasonClass.ACTIVE,
    Reason.UNKNOWN_FIELDS: ReasonClass.ACTIVE,
    Reason.FIELDS_KNOWN: ReasonClass.ACTIVE,
    Reason.STATUS_REFUSED: ReasonClass.ACTIVE,
    Reason.STATUS_COMPLETE: ReasonClass.ACTIVE,
    Reason.PUBLISHING_REPORT: ReasonClass.ACTIVE,
    Reason.REPORT_PUBLISHED: ReasonClass.TERMINAL,
    Reason.REPORT_LOST: ReasonClass.TERMINAL,
    Reason.NO_REPORT: ReasonClass.TERMINAL,
}

DESTINATION_UNWRITABLE = "DestinationUnwritable"
DESTINATION_UNAVAILABLE = "DestinationUnavailable"
DESTINATION_REASONS = frozenset(
    (
        DESTINATION_UNWRITABLE,
        DESTINATION_UNAVAILABLE,
        "DestinationNotFound",
        "DestinationAccessDenied",
        "DestinationAddressForbidden",
    )
)
"""The trainer's reasons for a destination that fails. In MERGE the job waits, whatever the class elsewhere is."""

TRAINER_CLASSES: dict[str, ReasonClass] = {
    "InternalError": ReasonClass.RETRYABLE,
    "Interrupted": ReasonClass.INTERRUPTED,
    "DatasetUnavailable": ReasonClass.RETRYABLE,
    "ModelUnavailable": ReasonClass.RETRYABLE,
    DESTINATION_UNAVAILABLE: ReasonClass.RETRYABLE,
    **dict.fromkeys(
        (
            "InvalidRunSpec",
            "InvalidNetworkSettings",
            "DatasetNotFound",
            "DatasetAccessDenied",
            "DatasetUrlExpired",
            "DatasetAddressForbidden",
            "DatasetTooLarge",
            "MalformedDataset",
            "InvalidDataset",
            "ModelNotFound",
            "ModelAccessDenied",
            "ModelAddressForbidden",
            "InvalidModel",
            "UnsupportedModel",
            "ModelUnprovable",
            Reason.MODEL_SIZE_UNKNOWN.value,
            "LengthNotSupported",
            "ChatTemplateMissing",
            "ChatTemplateUnprovable",
            "GpuNotVisible",
            "GpuOutOfMemory",
            Reason.HOST_OUT_OF_MEMORY.value,
            "NonFiniteLoss",
            "QuantizationMismatch",
            "AdapterUntrained",
            "ArtifactVerificationFailed",
            "WithheldByGate",
            *(DESTINATION_REASONS - {DESTINATION_UNAVAILABLE}),
            "WorkspaceFull",
            "WorkspaceAccessDenied",
        ),
        ReasonClass.PERMANENT,
    ),
}


def classify_trainer_reason(reason: str, exit_code: int) -> ReasonClass:
    """Class of a trainer's reason.

    For an unknown reason of a newer trainer, the exit code decides: 65 is permanent, and any other code is retryable.
    """
    known = TRAINER_CLASSES.get(reason)
    if known is not None:
        return known
    return ReasonClass.PERMANENT if exit_code == 65 else ReasonClass.RETRYABLE
