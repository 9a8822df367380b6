"""Decides what must be gone before the current attempt may start, because all attempts share one workspace."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from finetune_operator.observed.observation import Claim, Observation, Pod
from finetune_operator.status.draft import StatusDraft

PREVIOUS = "the previous FineTuneJob's objects to be gone"
"""Objects of a deleted FineTuneJob that had the same name."""


@dataclass(frozen=True)
class Obstacle:
    """Something that must be gone before a Job is created."""

    awaited: str
    """What the job waits for. The text stays the same for as long as the obstacle does."""
    look_again: timedelta
    """Time after which to look again, even if no event reports a change."""


def find_obstacle(observation: Observation, draft: StatusDraft, *, own_claim: bool) -> Obstacle | None:
    """The obstacle to a start of the current attempt, which has no Job yet; None if it may start.

    A pod counts until its trainer has ended, also if its Job is gone or never started it. Jobs that are being deleted
    before they ended count because they were replaced, or because their status was lost. `own_claim` is false if the
    user has provided the workspace.
    """
    pods = _pods_in_the_way(observation)
    uid = observation.job.uid
    previous = [child for child in observation.children if child.owner_uid != uid]
    if previous or any(_is_previous(pod, observation) for pod in pods):
        return Obstacle(PREVIOUS, timedelta(seconds=1))
    if pods:
        return _own(f"pod {pods[0].name} to end")
    for child in observation.children:
        if draft.find_attempt(child.stage, child.attempt) is None:
            return _own(f"Job {child.name} to be deleted")
    if not own_claim:
        return None
    if observation.previous_claim is not None:
        return Obstacle(PREVIOUS, timedelta(seconds=1))
    claim: Claim | None = observation.claim
    return _own(f"claim {claim.name} to be deleted") if claim is not None and claim.deleting else None


def _own(awaited: str) -> Obstacle:
    return Obstacle(awaited, timedelta(seconds=5))


def _pods_in_the_way(observation: Observation) -> list[Pod]:
    """Pods that run or may still run a trainer, oldest first. The current attempt has none, as it has no Job."""
    return sorted((pod for pod in observation.pods if pod.live), key=lambda pod: (pod.created, pod.name))


def _is_previous(pod: Pod, observation: Observation) -> bool:
    """True for a pod from before this FineTuneJob. Its own Job may be gone already."""
    own = {child.uid for child in observation.children if child.owner_uid == observation.job.uid}
    return pod.owner_uid not in own and pod.created < observation.job.created
