"""The ways to run a step cover what the operator's ladder may choose, in the order of their use."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.spec import Training as SpecTraining
from finetune_operator.contract.memory_trace import MAXIMUM_LENGTHS, MAXIMUM_RUNGS
from finetune_operator.sizing.ladder import TOKENS_PER_PASS, plans
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.run_spec import Training
from finetune_trainer.trace.ways import TOKENS_OF_A_PASS, Way, shorter, ways

from tests.support.memory_oracle.fake_run import plan_spec


def training(**changes: Any) -> Training:
    return plan_spec(TrainingPlan(2048, 1, 16)).training.model_copy(update=changes)


def test_both_sides_have_the_same_limit_of_tokens() -> None:
    assert TOKENS_OF_A_PASS == TOKENS_PER_PASS


@pytest.mark.parametrize("length", [16, 500, 2048, 8192, 50000])
@pytest.mark.parametrize("batch", [1, 7, 16, 64])
def test_every_plan_of_the_ladder_is_traced(length: int, batch: int) -> None:
    given = SpecTraining.model_validate({"effectiveBatchSize": batch})
    expected = {
        (plan.micro_batch_size, plan.gradient_checkpointing, plan.weights, plan.gradient_accumulation > 1)
        for plan in plans(given, length, "Allow")
    }
    found = ways(training(effective_batch_size=batch), length)
    assert {(way.rows, way.checkpointing, way.weights, way.accumulates) for way in found} >= expected
    assert len(found) == len(set(found))


def test_the_runs_own_way_comes_first_and_then_the_most_frugal() -> None:
    found = ways(training(micro_batch_size=4, gradient_checkpointing=False), 2048)
    assert found[0] == Way(4, 2048, accumulates=True, checkpointing=False, weights="Quantized")
    assert found[1] == Way(1, 2048, accumulates=True, checkpointing=True, weights="Quantized")


def test_many_divisors_are_thinned_and_the_ends_stay() -> None:
    found = ways(training(effective_batch_size=5040, micro_batch_size=5), 1)
    rows = {way.rows for way in found}
    assert {1, 5, 5040} <= rows
    assert len(found) <= MAXIMUM_RUNGS


def test_shorter_rows_are_fractions_of_the_longest() -> None:
    assert [way.length for way in shorter(training(), 2048)] == [1024, 512, 256]
    assert [way.length for way in shorter(training(), 40)] == [20, 16]
    assert shorter(training(), 16) == ()
    assert len(shorter(training(), 2048)) <= MAXIMUM_LENGTHS
    assert not shorter(training(effective_batch_size=1), 64)[0].accumulates
