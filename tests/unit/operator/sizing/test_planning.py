from __future__ import annotations

from finetune_operator.api.plan import Choice, LearningRate
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.planning import make_plan

from tests.support.operator import make_spec


def test_open_values_are_chosen_with_a_reason_and_given_ones_are_kept() -> None:
    chosen = make_plan(FineTuneJobSpec.parse(make_spec()), "cuda")
    assert (chosen.micro_batch_size, chosen.gradient_checkpointing, chosen.epochs) == (1, True, 3.0)
    assert all(choice.reason for choice in chosen.choices)
    assert not make_plan(FineTuneJobSpec.parse(make_spec()), "cpu").gradient_checkpointing
    training = {"maximumSteps": 40, "microBatchSize": 4, "gradientCheckpointing": "Require"}
    given = make_plan(FineTuneJobSpec.parse(make_spec(training=training)), "cpu")
    assert (given.micro_batch_size, given.gradient_checkpointing, given.epochs) == (4, True, None)
    assert given.choices == ()


def test_a_chosen_learning_rate_is_a_choice_and_a_given_one_is_not() -> None:
    spec = FineTuneJobSpec.parse(make_spec())
    before = make_plan(spec, "cuda")
    assert before.learning_rate.value == 0.0002, "PREPARE does not train"
    assert "learningRate" not in {choice.name for choice in before.choices}
    plan = make_plan(spec, "cuda", learning_rate=LearningRate(0.00012, "a rule"))
    assert Choice("learningRate", "0.00012", "a rule") in plan.choices
    given = make_plan(FineTuneJobSpec.parse(make_spec(training={"learningRate": 0.004})), "cuda")
    assert given.learning_rate == LearningRate(0.004)
    assert "learningRate" not in {choice.name for choice in given.choices}
    assert "above 0.003" in given.warnings[0]
