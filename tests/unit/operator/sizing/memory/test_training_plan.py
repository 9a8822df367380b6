"""The two products of a training plan."""

from __future__ import annotations

from finetune_operator.sizing.memory.training_plan import TrainingPlan


def test_tokens_are_of_one_pass_and_rows_of_one_optimizer_step() -> None:
    plan = TrainingPlan(2048, micro_batch_size=2, gradient_accumulation=8)
    assert plan.tokens == 4096
    assert plan.effective_batch_size == 16
