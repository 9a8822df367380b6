from __future__ import annotations

from finetune_operator.api.stages import Stage

from tests.support.operator import MERGE, TRAIN
from tests.support.world import started


def test_completed_stages_that_prepare_reports_are_not_run_again() -> None:
    world = started()
    world.succeed(Stage.PREPARE, completed={"train": TRAIN, "merge": MERGE})
    world.settle()
    assert world.created == ["demo-prepare-0"]
    assert world.condition("Succeeded") == ("True", "Completed")
    assert world.job.status["evaluation"]["verdict"] == "Improved"


def test_a_training_that_prepare_reports_leads_directly_to_merge() -> None:
    world = started()
    world.succeed(Stage.PREPARE, completed={"train": TRAIN})
    world.settle()
    assert world.created == ["demo-prepare-0", "demo-merge-0"]
