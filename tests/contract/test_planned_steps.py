"""The operator's estimate and the trainer count the same optimizer steps."""

from __future__ import annotations

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.work import planned_steps
from finetune_trainer.contract.run_spec import read_run_spec
from finetune_trainer.stages.train.settings import planned_steps as steps_of_trainer

from tests.support.operator import make_spec
from tests.support.repository import ROOT

TRAINING = read_run_spec(ROOT / "contract" / "fixtures" / "run.minimal.json").training


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1000])
@pytest.mark.parametrize("epochs", [0.01, 0.3, 1, 2.5])
def test_steps_follow_from_epochs_and_rows_alike(epochs: float, rows: int) -> None:
    given = {"epochs": epochs, "effectiveBatchSize": 16}
    trainers = TRAINING.model_copy(
        update={"epochs": epochs, "maximum_steps": None, "effective_batch_size": 16}
    )
    spec = FineTuneJobSpec.parse(make_spec(training=given))
    assert planned_steps(spec, rows) == steps_of_trainer(rows, trainers)


def test_a_maximum_of_steps_is_the_number_of_steps() -> None:
    trainers = TRAINING.model_copy(update={"epochs": None, "maximum_steps": 7})
    spec = FineTuneJobSpec.parse(make_spec(training={"maximumSteps": 7}))
    assert planned_steps(spec, 100) == steps_of_trainer(100, trainers) == 7
