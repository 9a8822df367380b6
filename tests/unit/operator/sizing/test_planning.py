from __future__ import annotations

from finetune_operator.api.plan import Choice, LearningRate, Rung
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.ladder import training_plan
from finetune_operator.sizing.planning import MAXIMUM_RUNGS, frugal_rungs, make_plan

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


def test_a_plan_of_a_few_values_has_a_ladder_only_if_something_needs_less() -> None:
    """On a GPU, the plan of a job that is not sized needs the least memory already."""
    spec = FineTuneJobSpec.parse(make_spec())
    assert make_plan(spec, "cuda").ladder == ()
    assert make_plan(spec, "cuda").optimizer == "PagedAdamW8Bit"
    on_cpu = make_plan(spec, "cpu")
    assert on_cpu.ladder == (Rung(1, gradient_checkpointing=True, optimizer="AdamW"),)
    assert on_cpu.optimizer == "AdamW"
    forbidden = FineTuneJobSpec.parse(make_spec(training={"gradientCheckpointing": "Forbid"}))
    assert make_plan(forbidden, "cpu").ladder == ()


def test_a_long_ladder_is_thinned_out_and_keeps_its_last_rung() -> None:
    training = FineTuneJobSpec.parse(make_spec()).training
    plans = [training_plan(training, 16, size, checkpointing=False) for size in range(20, 0, -1)]
    rungs = frugal_rungs(plans)
    sizes = [rung.micro_batch_size for rung in rungs]
    assert len(sizes) == MAXIMUM_RUNGS
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] == 1
    assert [rung.micro_batch_size for rung in frugal_rungs(plans[:3])] == [20, 19, 18]
    assert frugal_rungs([]) == ()
