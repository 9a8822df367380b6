"""A whole layer on the meter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.layer import layer_backward, layer_forward
from finetune_operator.sizing.memory.layer_sizes import layer_sizes
from finetune_operator.sizing.memory.meter import Meter
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

PLANS = [
    TrainingPlan(48),
    TrainingPlan(48, gradient_checkpointing=False),
    TrainingPlan(48, gradient_checkpointing=False, dropout=True),
    TrainingPlan(48, target_modules="AttentionOnly", gradient_checkpointing=False),
    TrainingPlan(48, variant="DoRA"),
]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_backward_pass_frees_all_that_the_forward_pass_saved(family: str) -> None:
    for plan in PLANS:
        for stack in (DEFAULT_STACK, replace(DEFAULT_STACK, cast_to_float32=True)):
            sizes = layer_sizes(small_model(family), plan, stack, windowed=False)
            meter = Meter()
            layer_forward(meter, sizes, saving=True)
            layer_backward(meter, sizes)
            assert meter.now == [0, sizes.hidden, 0, 0], plan


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_saving_only_the_output_stays(family: str) -> None:
    sizes = layer_sizes(small_model(family), TrainingPlan(48), DEFAULT_STACK, windowed=False)
    meter = Meter()
    layer_forward(meter, sizes, saving=False)
    assert meter.now == [0, sizes.hidden, 0, 0]
