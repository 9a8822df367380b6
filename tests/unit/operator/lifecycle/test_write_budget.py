"""How often the status of one job is written. Every write wakes each client that watches FineTuneJobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

from finetune_operator.api.stages import WORK_STAGES, Stage

from tests.support.operator import CONFIG, make_progress, make_spec
from tests.support.world import World, started

OTHER_WRITES = 12
"""Writes of an undisturbed job apart from its progress."""


class Counter:
    """Lets a world decide after each change, and counts the statuses that it writes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.progress_times: list[float] = []
        self.others: list[str] = []

    def look(self, change: Callable[[], object] = lambda: None) -> None:
        """Let `change` happen, then decide until nothing is written any more."""
        change()
        for _ in range(5):
            before = self.world.job.status
            self.world.step()
            after = self.world.job.status
            if after == before:
                return
            if without_progress(after) == without_progress(before):
                self.progress_times.append(self.world.now.timestamp())
            else:
                self.others.append(f"{after['phase']}: {after['conditions'][1]['message']}")
        raise AssertionError("the status does not come to rest")


def without_progress(status: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in status.items() if name != "progress"}


def live(counter: Counter, stage: Stage) -> None:
    """Let one stage run as the Job controller, the scheduler, the kubelet and the trainer make it."""
    world = counter.world
    name = f"demo-{stage.slug}-0"
    pod = world.run_pod(name, phase="Pending", node="", ip="", running=False)
    counter.look()

    def change(**changes: Any) -> Callable[[], None]:
        return lambda: world.pods.update({pod.uid: replace(world.pods[pod.uid], **changes)})

    counter.look(change(node="node1", scheduled=world.now))
    counter.look(change(waiting=("ContainerCreating", "")))
    world.wait(3)
    counter.look(change(waiting=None, running=True, phase="Running", ip="10.0.0.1"))
    config = CONFIG if stage is Stage.PREPARE else None
    for step in range(60):
        world.wait(5)
        world.progress = make_progress(
            stage, activity=f"Doing{step % 7}", step=step, totalSteps=60, config=config
        )
        counter.look()
    counter.look(lambda: world.succeed(stage))


def test_an_undisturbed_life_writes_its_status_twelve_times_and_its_progress_rarely() -> None:
    counter = Counter(World())
    counter.look()
    for stage in WORK_STAGES:
        live(counter, stage)
    assert counter.world.job.status["phase"] == "Succeeded"
    assert len(counter.others) <= OTHER_WRITES, counter.others
    times = counter.progress_times
    assert len(times) >= 3 * 8, "progress is shown"
    assert min(later - earlier for earlier, later in pairwise(times)) >= 30


def test_progress_that_is_held_back_is_shown_later_even_if_the_trainer_falls_silent() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    for step in (1, 2):
        world.progress = make_progress(Stage.TRAIN, step=step, totalSteps=40)
        world.settle()
    assert world.job.status["progress"]["step"] == 1
    due = world.decide().requeue_time
    assert due == world.now + timedelta(seconds=30)
    world.now = due
    world.settle()
    assert world.job.status["progress"]["step"] == 2


def test_a_wait_without_a_pod_is_written_once() -> None:
    world = started(spec=make_spec())
    counter = Counter(world)
    counter.look()
    counter.others.clear()
    for _ in range(100):
        world.wait(30)
        counter.look()
    assert len(counter.others) == 1
