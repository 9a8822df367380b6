from __future__ import annotations

from finetune_operator.api.stages import Stage
from finetune_operator.settings import Settings

from tests.support.operator import (
    TRAIN,
    TRAINER,
    make_job,
)
from tests.support.world import World, started


def test_conditions_keep_their_transition_time_while_their_status_stays_the_same() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    world.wait(60)
    world.settle()
    entry = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")
    assert entry["reason"] == "Preparing"
    assert entry["lastTransitionTime"] == "2026-11-24T09:00:00Z"


def test_an_attempt_of_train_shows_estimated_and_measured_memory() -> None:
    measured = {"allocatedBytes": 10**9, "reservedBytes": 2 * 10**9, "deviceBytes": None}
    world = World(job=make_job(), settings=Settings(trainer=TRAINER))
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    world.succeed(Stage.TRAIN, train={**TRAIN, "memory": measured})
    world.settle()
    memory = world.job.status["plan"]["memory"]
    assert world.job.status["attempts"][1]["memory"] == {
        "estimatedBytes": memory["peakBytes"],
        "estimatedDeviceBytes": memory["deviceBytes"],
        "allocatedBytes": 10**9,
        "reservedBytes": 2 * 10**9,
    }
