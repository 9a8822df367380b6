"""The state of a stage's work in its pod: in the trainer's container, or in a step of the stage before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_operator.api.formats import parse_time
from finetune_operator.api.stages import STEP_CONTAINERS


@dataclass(frozen=True)
class ContainerEnd:
    """The end of the trainer's container."""

    exit_code: int
    reason: str
    message: str
    finished: datetime | None


def state_of_work(
    trainer: Mapping[str, Any], init_containers: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The state of the trainer, or of a step of the stage before it that runs or has failed.

    If such a step fails, the trainer never runs. If it succeeds, the stage goes on with the trainer.
    """
    for entry in init_containers:
        state: Mapping[str, Any] = entry.get("state") or {}
        if entry["name"] in STEP_CONTAINERS and (
            "running" in state or (state.get("terminated") or {}).get("exitCode", 0) != 0
        ):
            return state
    return trainer.get("state") or {}


def why_not_started(
    waiting: Mapping[str, Any] | None, init_containers: Sequence[Mapping[str, Any]]
) -> tuple[str, str] | None:
    """Reason and message of a waiting trainer. It may wait for an init container that somebody injected."""
    if not waiting:
        return None
    for entry in init_containers:
        cause = (entry.get("state") or {}).get("waiting") or {}
        if cause.get("reason", "PodInitializing") != "PodInitializing":
            return f"Init:{cause['reason']}", f"container {entry['name']}: {cause.get('message', '')}"
    return waiting.get("reason", ""), waiting.get("message", "")


def container_end(terminated: Mapping[str, Any] | None) -> ContainerEnd | None:
    """Project a `terminated` state; None if there is none."""
    if not terminated:
        return None
    return ContainerEnd(
        exit_code=terminated.get("exitCode", -1),
        reason=terminated.get("reason", ""),
        message=terminated.get("message", ""),
        finished=time_of(terminated, "finishedAt"),
    )


def start_of(state: Mapping[str, Any]) -> datetime | None:
    """The time at which a container started; None if it has not, or if the kubelet does not know it.

    A kubelet that has lost the container may write the beginning of the Unix epoch.
    """
    started = time_of(state.get("running") or state.get("terminated") or {}, "startedAt")
    return None if started is None or started.year <= 1970 else started


def time_of(fields: Mapping[str, Any], name: str) -> datetime | None:
    """Read a member that is a time; None if it is absent."""
    text = fields.get(name)
    return parse_time(text) if text else None
