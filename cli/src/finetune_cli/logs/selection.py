"""Decides which attempt's log is wanted, and which containers of its pod have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.stages import (
    ATTEMPT_LABEL,
    CONTAINER_NAME,
    MERGE_CONTAINER,
    PROBE_CONTAINER,
    STAGE_LABEL,
    WORK_STAGES,
)

from finetune_cli.errors import UsageError

_CONTAINERS = (PROBE_CONTAINER, MERGE_CONTAINER, CONTAINER_NAME)
"""In the order in which they run."""


@dataclass(frozen=True)
class Wanted:
    """A stage in lower case, and one of its attempts."""

    stage: str
    attempt: int


def choose(job: Mapping[str, Any], stage: str | None, attempt: int | None) -> Wanted:
    """Choose the stage and the attempt: by default those that run, or that were the last.

    Raises UsageError if the stage has not begun, or the attempt does not exist.
    """
    name = job["metadata"]["name"]
    known = _attempts(job)
    if not known:
        raise UsageError(
            f"{name} must have begun a stage, found none yet; its conditions say what it waits for"
        )
    chosen = known[-1].stage if stage is None else stage
    attempts = [each.attempt for each in known if each.stage == chosen]
    if not attempts:
        begun = ", ".join(dict.fromkeys(each.stage for each in known))
        raise UsageError(f"--stage must be one that {name} has begun, found {chosen}; begun are: {begun}")
    if attempt is not None and attempt > max(attempts):
        raise UsageError(f"--attempt must be at most {max(attempts)} for {chosen} of {name}, found {attempt}")
    return Wanted(chosen, max(attempts) if attempt is None else attempt)


def pod_of(pods: Sequence[Mapping[str, Any]], wanted: Wanted) -> Mapping[str, Any] | None:
    """The newest pod of the attempt; None if there is none any more."""
    labels = {STAGE_LABEL: wanted.stage, ATTEMPT_LABEL: str(wanted.attempt)}
    found = [pod for pod in pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()]
    return max(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)


def containers_with_logs(pod: Mapping[str, Any]) -> list[str]:
    """The trainer's containers that have started, in the order in which they run."""
    status = pod.get("status") or {}
    entries = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    started = {
        entry["name"] for entry in entries if {"running", "terminated"} & (entry.get("state") or {}).keys()
    }
    return [name for name in _CONTAINERS if name in started]


def has_ended(pod: Mapping[str, Any]) -> bool:
    """Return True if no container of the pod runs again."""
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def _attempts(job: Mapping[str, Any]) -> list[Wanted]:
    """The attempts of all stages in the order of their ends, and the current one."""
    status = job.get("status") or {}
    entries = [(entry["stage"], entry["attempt"]) for entry in status.get("attempts") or ()]
    current = status.get("stage") or {}
    if "startTime" in current:
        entries.append((current["name"], current["attempt"]))
    slugs = {stage.value: stage.slug for stage in WORK_STAGES}
    return [Wanted(slugs[stage], attempt) for stage, attempt in entries if stage in slugs]
