"""Models of the trainers of the three stages: how long they run, how they end, and what they leave in the workspace."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.api.stages import Stage

from tests.support.operator import CONFIG, MERGE, SECTIONS, TRAIN

SECONDS = {Stage.PREPARE: (3.0, 20.0), Stage.TRAIN: (10.0, 60.0), Stage.MERGE: (2.0, 15.0)}
"""The shortest and the longest work of each stage."""


@dataclass(frozen=True)
class End:
    """The end of a container."""

    code: int
    message: str = ""
    reason: str = ""

    @property
    def phase(self) -> str:
        """The phase of its pod."""
        return "Succeeded" if self.code == 0 else "Failed"


@dataclass(frozen=True)
class Task:
    """The attempt that a pod runs."""

    key: tuple[str, str]
    """Namespace and name of the FineTuneJob."""
    uid: str
    """That of the FineTuneJob."""
    stage: Stage
    attempt: int

    def __str__(self) -> str:
        return f"{self.stage.value} {self.attempt} of {self.key[1]} ({self.uid})"


@dataclass
class Workspace:
    """What the stages have left in one claim."""

    done: set[Stage] = field(default_factory=set)


FATES = ("fail", "vanish", "out of memory", "bad data", "destination")
"""How an attempt can end other than by a success."""


@dataclass
class Trainers:
    """The trainers of one life. `fates` are the ends of the first attempts of a stage; later ones succeed."""

    random: random.Random
    fates: dict[tuple[tuple[str, str], Stage], list[str]] = field(default_factory=dict)

    def work_seconds(self, task: Task, workspace: Workspace) -> float:
        """The time until the trainer ends. A stage that finds itself done ends soon."""
        shortest, longest = SECONDS[task.stage]
        return 1.0 if task.stage in workspace.done else self.random.uniform(shortest, longest)

    def end(self, task: Task, workspace: Workspace) -> End:
        """The end of an attempt that nobody interrupts."""
        fates = self.fates.get((task.key, task.stage))
        match fates.pop(0) if fates else "":
            case "fail":
                return End(69, failure(task, "InternalError"), "Error")
            case "vanish":
                return End(137, "", "Error")
            case "out of memory":
                return End(137, "", "OOMKilled")
            case "bad data":
                return End(65, failure(task, "InvalidDataset"), "Error")
            case "destination":
                return End(65, failure(task, "DestinationUnwritable"), "Error")
        known = set(workspace.done)
        workspace.done.add(task.stage)
        return End(0, success(task, known), "Completed")

    def interrupted(self, task: Task) -> tuple[float, End]:
        """Seconds until a trainer ends that was told to stop, and its end."""
        if self.random.random() < 0.1:
            return 120.0 if task.stage is Stage.TRAIN else 30.0, End(137, "", "Error")
        longest = 15.0 if task.stage is Stage.TRAIN else 1.5
        return self.random.uniform(0.1, longest), End(
            75, failure(task, "Interrupted", "Interrupted"), "Error"
        )


def _document(task: Task, **members: Any) -> str:
    run = {"version": "1.2", "uid": task.uid, "stage": task.stage.value, "attempt": task.attempt}
    return json.dumps({**run, **members})


_TIMES = {"startTime": "2026-11-24T09:00:00Z", "completionTime": "2026-11-24T09:00:05Z"}


def success(task: Task, done: set[Stage]) -> str:
    """The result of a success. PREPARE also tells which later stages are `done` in its workspace."""
    sections = dict(SECTIONS[task.stage])
    if task.stage is Stage.PREPARE and Stage.TRAIN in done:
        sections["completed"] = {"train": TRAIN, **({"merge": MERGE} if Stage.MERGE in done else {})}
    return _document(task, outcome="Succeeded", **_TIMES, **sections)


def failure(task: Task, reason: str, outcome: str = "Failed") -> str:
    """The result of an attempt that did not succeed."""
    return _document(
        task, outcome=outcome, reason=reason, message=f"must not be {reason}", logTail=[], **_TIMES
    )


def progress(task: Task, step: int, now: str) -> bytes:
    """The progress of a running trainer at the time `now`."""
    members: dict[str, Any] = {"activity": "Training", "step": step, "totalSteps": 40, "loss": 1.5}
    if task.stage is Stage.PREPARE:
        members = {"activity": "FetchingDataset", "step": step, "totalSteps": None, "config": CONFIG}
    times = {"startTime": _TIMES["startTime"], "heartbeatTime": now}
    return _document(task, **members, **times).encode()
