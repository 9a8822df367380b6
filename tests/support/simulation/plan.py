"""Draws a life from its seed: the jobs, the ends of their attempts, and the faults."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.api.stages import WORK_STAGES, Stage

from tests.support.operator import make_spec
from tests.support.simulation.faults import FAULTS
from tests.support.simulation.randomness import stream
from tests.support.simulation.trainers import FATES

Key = tuple[str, str]


@dataclass(frozen=True)
class PlannedJob:
    """A FineTuneJob that a user creates."""

    key: Key
    time: float
    spec: dict[str, Any]


@dataclass(frozen=True)
class PlannedFault:
    """A fault that begins at a time and lasts for some seconds."""

    kind: str
    time: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind} at {self.time:.3f} s for {self.seconds:.3f} s"


@dataclass(frozen=True)
class Plan:
    """Everything that a seed decides before its life begins."""

    seed: int
    replicas: int
    jobs: tuple[PlannedJob, ...]
    fates: dict[tuple[Key, Stage], list[str]] = field(default_factory=dict)
    faults: tuple[PlannedFault, ...] = ()

    @property
    def harmless(self) -> bool:
        """True if every job must succeed, and no stage may run twice."""
        deadlines = any("deadlineSeconds" in job.spec["lifecycle"] for job in self.jobs)
        return not self.fates and not deadlines and all(FAULTS[each.kind].harmless for each in self.faults)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.replicas} operators"]
        lines += [
            f"job {job.key[1]} at {job.time:.3f} s: {job.spec['lifecycle']} {job.spec.get('resources', '')}"
            for job in self.jobs
        ]
        lines += [
            f"{stage.value} of {key[1]} ends with {fates}" for (key, stage), fates in self.fates.items()
        ]
        return "\n".join([*lines, *map(str, self.faults)])


def draw_plan(seed: int, kinds: Sequence[str] | None = None, *, faults: int | None = None) -> Plan:
    """The plan of a seed. With `kinds`, its faults are of these kinds; `faults` is their number."""
    draw = stream("plan", seed)
    names = sorted(FAULTS) if kinds is None else list(kinds)
    number = draw.choice([0, 1, 1, 2, 2, 3, 4]) if faults is None else faults
    chosen = [FAULTS[draw.choice(names)] for _ in range(number)]
    replicas = max([fault.replicas for fault in chosen], default=1)
    if draw.random() < 0.1:
        replicas = 2
    gpus = stream("gpus", seed)
    jobs = tuple(_draw_job(draw, gpus, index) for index in range(draw.choice([1, 1, 1, 1, 1, 1, 2, 3])))
    fates = {
        (job.key, stage): draw.choices(FATES, k=draw.choice([1, 1, 2]))
        for job in jobs
        for stage in WORK_STAGES
        if draw.random() < 0.1
    }
    planned = sorted(
        (
            PlannedFault(fault.name, draw.uniform(0.0, 90.0), draw.uniform(0.5, fault.longest))
            for fault in chosen
        ),
        key=lambda each: each.time,
    )
    return Plan(seed, replicas, jobs, fates, tuple(planned))


GPUS = ({"gpus": 2, "gpusPerNode": 1}, {"gpus": 2})
"""Two pods with a GPU each, and as many GPUs where the operator chooses."""


def _draw_job(draw: random.Random, gpus: random.Random, index: int) -> PlannedJob:
    lifecycle: dict[str, Any] = {
        "keepWorkspace": draw.choice(["OnFailure", "Always", "Never"]),
        "retries": draw.choice([0, 2, 2]),
    }
    if draw.random() < 0.2:
        lifecycle["keepChildrenSeconds"] = {"success": draw.choice([0, 20]), "failure": draw.choice([0, 30])}
    if draw.random() < 0.05:
        lifecycle["deadlineSeconds"] = draw.choice([20, 90, 600])
    several = {"resources": gpus.choice(GPUS)} if gpus.random() < 0.2 else {}
    spec = make_spec(lifecycle=lifecycle, **several)
    return PlannedJob(("team", f"job-{index}"), draw.uniform(0.0, 5.0), spec)
