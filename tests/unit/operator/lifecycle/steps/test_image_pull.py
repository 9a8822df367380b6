from __future__ import annotations

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage

from tests.support.world import World, started


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_an_attempt_shows_the_pull_of_its_image_rounded_up(stage: Stage) -> None:
    world = started(stage)
    pod = world.run_pod(f"demo-{stage.slug}-0")
    world.settle()
    assert "imagePullSeconds" not in world.job.status["stage"]
    world.image_pulls = {pod.uid: 62.1}
    world.settle()
    assert world.job.status["stage"]["imagePullSeconds"] == 63
    # The pod is gone, and so is what was known about it.
    world.image_pulls = {}
    world.succeed(stage)
    world.settle()
    assert world.job.status["attempts"][-1]["imagePullSeconds"] == 63
    assert "imagePullSeconds" not in world.job.status["stage"] or stage is Stage.MERGE


def test_a_time_that_is_read_at_the_end_of_an_attempt_still_shows() -> None:
    world = started(Stage.TRAIN)
    pod = world.run_pod("demo-train-0")
    world.image_pulls = {pod.uid: 0.0, "other": 9.0}
    world.fail(Stage.TRAIN, "NonFiniteLoss")
    world.settle()
    assert world.job.status["attempts"][-1]["imagePullSeconds"] == 0


def test_an_attempt_without_such_an_event_shows_no_time() -> None:
    world = World()
    world.settle()
    world.image_pulls = {"other": 9.0}
    world.succeed(Stage.PREPARE)
    world.settle()
    assert "imagePullSeconds" not in world.job.status["attempts"][-1]
