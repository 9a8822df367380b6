"""The values that `decide` returns: a decision with its actions, or what it needs to know first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any


@dataclass(frozen=True)
class CreateClaim:
    """Create the workspace's claim."""

    body: dict[str, Any]


@dataclass(frozen=True)
class CreateJob:
    """Create a stage's batch/v1 Job, or a JobSet with it."""

    body: dict[str, Any]


@dataclass(frozen=True)
class SuspendJob:
    """Set `spec.suspend` of the Job or JobSet with this uid, and record on it that it was the operator.

    With a `resource_version`, nothing happens if the Job has changed since. So the operator never takes a suspension by
    somebody else that came in between for its own, and never undoes it.
    """

    name: str
    uid: str
    suspend: bool
    resource_version: str = ""
    kind: str = "Job"


@dataclass(frozen=True)
class DeleteJob:
    """Delete the Job or JobSet with this uid and, in the background, its pods."""

    name: str
    uid: str
    kind: str = "Job"


@dataclass(frozen=True)
class DeletePod:
    """Delete the pod with this uid. Until it is gone, it keeps its GPU and its quota.

    Without a container that runs, there is no grace period. The kubelet would take two more seconds to report that.
    """

    name: str
    uid: str
    grace_seconds: int = 0


@dataclass(frozen=True)
class DeleteClaim:
    """Delete the claim with this uid."""

    name: str
    uid: str


@dataclass(frozen=True)
class ExpandClaim:
    """Raise the storage request of the claim with this uid to `size`, a Kubernetes quantity."""

    name: str
    uid: str
    size: str


Action = CreateClaim | CreateJob | SuspendJob | DeleteJob | DeletePod | DeleteClaim | ExpandClaim


@dataclass(frozen=True)
class Decision:
    """Write `status` if it differs from the stored one, then carry out the actions in order.

    A refused action stops only those that depend on it. With `acts_first`, the first refusal stops them, and the
    status is that of the next decision.
    """

    status: dict[str, Any] | None = None
    actions: tuple[Action, ...] = ()
    held: tuple[Action, ...] = ()
    """Actions that a refusal of the API server holds back."""
    requeue_time: datetime | None = None
    """Time at which to decide again even if nothing changes; None if no such time is known."""
    acts_first: bool = False
    """The actions start a new job, and what they do shows from their objects alone (`lifecycle.first_start`)."""
    problem: str | None = None
    """Why nothing at all can be decided, for the log; None otherwise."""


class Need(Enum):
    """Knowledge that the observation lacks. Read it and decide again."""

    FRESH_CHILDREN = auto()
    """Children and pods from the API server. A watch that lags behind must not make an attempt look lost."""
    POD_WARNINGS = auto()
    """The latest Events of children that do not start, because the end of an attempt tells their cause."""
    VOLUMES = auto()
    """The job's claims and their volumes, which no watch covers."""
