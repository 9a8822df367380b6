"""What a decision may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class CreateClaim:
    """Create the workspace's claim."""

    body: dict[str, Any]


@dataclass(frozen=True)
class CreateJob:
    """Create a stage's batch/v1 Job."""

    body: dict[str, Any]


@dataclass(frozen=True)
class SuspendJob:
    """Set `spec.suspend` of this very batch/v1 Job."""

    name: str
    uid: str
    suspend: bool


@dataclass(frozen=True)
class DeleteJob:
    """Delete this very batch/v1 Job and, in the background, its pods."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeletePod:
    """Delete this very pod without grace: nothing in it runs any more.

    The kubelet would take two more seconds to say so, in which the pod keeps its GPU and its quota.
    """

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteClaim:
    """Delete this very claim."""

    name: str
    uid: str


@dataclass(frozen=True)
class ExpandClaim:
    """Raise the storage request of this very claim to `size`, a Kubernetes quantity."""

    name: str
    uid: str
    size: str


Action = CreateClaim | CreateJob | SuspendJob | DeleteJob | DeletePod | DeleteClaim | ExpandClaim


@dataclass(frozen=True)
class Decision:
    """What to do: write `status` if it differs from the stored one, then the actions in order.

    `needs_fresh` asks to decide again with children and pods read from the API server: an attempt would otherwise be
    called lost on the word of a watch that may lag behind. `needs_volumes` asks to decide again with the job's claims
    and their volumes, which no watch tells. Nothing else of such a decision is to be carried out.
    """

    status: dict[str, Any] | None = None
    actions: tuple[Action, ...] = ()
    requeue_time: datetime | None = None
    needs_fresh: bool = False
    needs_volumes: bool = False
