from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import DeleteJob

from tests.support.operator import make_progress
from tests.support.world import started


def test_children_of_an_earlier_job_of_the_same_name_stay_untouched() -> None:
    world = started()
    world.children = {name: replace(child, owner_uid="old") for name, child in world.children.items()}
    decision = world.decide()
    assert not any(isinstance(action, DeleteJob) for action in decision.actions)


def test_progress_of_the_current_attempt_reaches_status() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.progress = make_progress(Stage.TRAIN, step=10)
    world.settle()
    progress = world.job.status["progress"]
    assert (progress["activity"], progress["percent"], progress["loss"]) == ("Training", "25%", "1.5")


def test_progress_of_an_earlier_attempt_is_ignored() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.progress = make_progress(Stage.PREPARE)
    world.settle()
    assert world.job.status["progress"]["activity"] == "Starting"
