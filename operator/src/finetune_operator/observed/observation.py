"""The operator's view of the cluster: small values that are projected from API objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_operator.api.formats import parse_time
from finetune_operator.api.stages import (
    Stage,
)
from finetune_operator.contract.result import Progress
from finetune_operator.observed.container_state import (
    ContainerEnd,
)
from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.movement import Movement
from finetune_operator.placement.storage import JobVolumes

Key = tuple[str, str]
"""(namespace, name) of a FineTuneJob."""


@dataclass(frozen=True, slots=True)
class JobVersion:
    """Which FineTuneJob it is, and in which version."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created: datetime
    deleting: bool

    @property
    def key(self) -> Key:
        """The key in the store and the queue."""
        return (self.namespace, self.name)


@dataclass(frozen=True)
class JobRecord(JobVersion):
    """A FineTuneJob."""

    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """The one-word summary of the status."""
        return str(self.status.get("phase", "Pending"))

    @property
    def completed(self) -> datetime | None:
        """Time at which the job ended; None if it has not, or if nobody can read that time."""
        text = self.status.get("completionTime")
        try:
            return None if text is None else parse_time(text)
        except (TypeError, ValueError):
            return None

    @property
    def lacks_gpu(self) -> bool:
        """True if the job has not ended and TRAIN has not had a node yet."""
        stage = self.status.get("stage") or {}
        if not isinstance(stage, Mapping):
            # Another version wrote it. The next decision says so.
            return False
        if stage.get("name", Stage.PREPARE) == Stage.MERGE or (
            stage.get("name") == Stage.TRAIN and "node" in stage
        ):
            return False
        return "completionTime" not in self.status


@dataclass(frozen=True)
class ChildJob:
    """The batch/v1 Job of one attempt of one stage, or the JobSet that has made it."""

    name: str
    uid: str
    owner_uid: str
    resource_version: str
    stage: Stage
    attempt: int
    created: datetime
    suspended: bool
    deleting: bool
    finished: bool
    failure: str | None
    """Message of the Failed condition, if the Job has failed."""
    placement: str = ""
    """Digest of the plan and the GPUs that a Job of TRAIN was made for; empty for other stages."""
    pod_defaults: str = ""
    """Digest of the chart's pod defaults that the Job was made with; empty for those of the chart itself."""
    image: str = ""
    """The trainer's image."""
    held: bool = False
    """The operator suspended the Job, so the operator may resume it."""
    queue: str = ""
    """The LocalQueue of Kueue, which suspends and resumes the Job; empty for none."""
    resumed: datetime | None = None
    """Time at which the Job controller last resumed the Job; None if it never did."""
    pods: int = 1
    """Pods that run at the same time, one for each node of TRAIN."""
    kind: str = "Job"
    """`Job`, or `JobSet` for one whose only Job has the pods."""
    watched: bool = True
    """The Job has the label that the watch selects. Without it, only fresh reads show the Job."""

    @property
    def started(self) -> datetime:
        """Time since which the Job should have a pod, unless it is suspended."""
        return self.created if self.resumed is None else max(self.created, self.resumed)


@dataclass(frozen=True)
class Pod:
    """A pod of a stage's Job."""

    name: str
    uid: str
    owner_uid: str
    """uid of the batch/v1 Job that controls it, or of the JobSet that has made the Job."""
    resource_version: str
    created: datetime
    phase: str
    ip: str
    node: str
    reason: str
    message: str
    deleting: bool
    disrupted: bool
    """A disruption (eviction, preemption, node loss) hits the pod or has ended it."""
    unschedulable: str | None
    """The scheduler's message while it finds no node; None otherwise."""
    waiting: tuple[str, str] | None
    """Reason and message of the container's waiting state; None if it does not wait.

    The reason begins with `Init:` if it waits for an injected init container.
    """
    running: bool
    end: ContainerEnd | None
    idle: bool
    """No container of the pod runs any more, including injected ones."""
    scheduled: datetime | None = None
    """Time at which the pod got its node."""
    started: datetime | None = None
    """Time at which the trainer started, by the clock of the node that also measures its end; None if it has not."""
    deletion_time: datetime | None = None
    """Time at which the grace period of a pod that is being deleted ends."""
    watched: bool = True
    """The pod has the label that the watch selects. Without it, only fresh reads show the pod."""
    host_network: bool = False
    """The pod has the addresses of its node."""
    index: int = 0
    """Number of the pod among those of its Job that run at the same time. The first one reports the result."""
    job_uid: str = ""
    """uid of the FineTuneJob whose run spec the pod has; empty if no Job of the operator made it."""

    @property
    def live(self) -> bool:
        """True until the trainer has ended, even if the pod has not started or is being deleted."""
        return self.end is None and self.phase not in {"Succeeded", "Failed"}

    @property
    def starting(self) -> bool:
        """True while the pod has a node but its trainer does not run there yet."""
        return self.live and not self.running and not self.deleting and bool(self.node)


@dataclass(frozen=True)
class Claim:
    """The workspace's PersistentVolumeClaim."""

    name: str
    uid: str
    owner_uid: str
    resource_version: str
    deleting: bool
    watched: bool = True
    """The claim has the label that the watch selects. Without it, only fresh reads show the claim."""


CREATION = "create"
"""The key of the refusal that holds the claim or the Job of the current attempt."""


@dataclass(frozen=True)
class Rejection:
    """The API server's last refusal of an action, and the time of the next try."""

    message: str
    retry_time: datetime
    final: bool = False
    """True if the object is invalid, so that asking again is of no use."""


@dataclass(frozen=True)
class Observation:
    """Everything that one decision is based on."""

    job: JobRecord
    inventory: Inventory
    children: tuple[ChildJob, ...] = ()
    pods: tuple[Pod, ...] = ()
    claim: Claim | None = None
    previous_claim: Claim | None = None
    """The claim of an earlier FineTuneJob of this name, until it is gone."""
    progress: Progress | None = None
    movement: Movement | None = None
    """What the polls of the last trainer that answered have shown."""
    rejection: Rejection | None = None
    """The refusal of the claim or the Job of the current attempt."""
    refusals: Mapping[str, Rejection] = field(default_factory=dict)
    """The refusals of all other actions by `lifecycle.refusals.action_key`."""
    volumes: JobVolumes | None = None
    """The claims of the job, if they were read for this decision."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Why Jobs have no pod and pods do not run, by uid, as far as it shows in Events only."""
    image_pulls: Mapping[str, float] = field(default_factory=dict)
    """Seconds for which pods waited for the trainer's image, by uid, as far as an Event tells."""
    warnings_read: bool = False
    """True if the warnings were read for this decision. Otherwise they are some seconds old."""
    fresh: bool = False
    """True if children and pods were read from the API server for this decision, not from the watch."""
    last_read: datetime | None = None
    """Time of the last such read; None if there was none."""
    had_jobs: bool = False
    """Jobs of a FineTuneJob of this name are known, or were known before they were gone."""
