"""A whole layer on the meter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.layer import layer_backward, layer_forward
from finetune_operator.sizing.memory.layer_sizes import LayerSizes, layer_sizes
from finetune_operator.sizing.memory.meter import Meter
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

PLANS = [
    TrainingPlan(48),
    TrainingPlan(48, gradient_checkpointing=False),
    TrainingPlan(48, gradient_checkpointing=False, dropout=True),
    TrainingPlan(48, target_modules="AttentionOnly", gradient_checkpointing=False),
    TrainingPlan(48, variant="DoRA"),
]


OWN: list[dict[str, Any]] = [
    {"resid_pdrop": 0.1, "hidden_dropout": 0.1, "residual_dropout": 0.1, "embd_pdrop": 0.1},
    {"attention_dropout": 0.1},
    {"clip_qkv": 8.0},
    {"hidden_act": "gelu_new"},
    {"hidden_act": "xielu"},
    {"hidden_act": "relu2"},
]


def layers(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> list[LayerSizes]:
    """Return a layer of each kind that the model has."""
    convolutions = [False, True] if shape.convolution_layers else [False]
    return [layer_sizes(shape, plan, stack, windowed=False, convolution=one) for one in convolutions]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_backward_pass_frees_all_that_the_forward_pass_saved(family: str) -> None:
    for plan in PLANS:
        for stack in (DEFAULT_STACK, replace(DEFAULT_STACK, cast_to_float32=True)):
            for sizes in layers(small_model(family), plan, stack):
                meter = Meter()
                layer_forward(meter, sizes, saving=True)
                layer_backward(meter, sizes)
                assert meter.now == [0, sizes.hidden, 0, 0], plan


@pytest.mark.parametrize("members", OWN, ids=str)
@pytest.mark.parametrize("family", ["llama", "starcoder2", "phi", "gpt_neox", "stablelm", "phi3", "gemma2"])
def test_what_a_config_adds_to_a_layer_is_freed_too(family: str, members: dict[str, Any]) -> None:
    """Dropouts of the model's own, clipped queries, and activations of several operations."""
    for plan in PLANS:
        for stack in (DEFAULT_STACK, replace(DEFAULT_STACK, attention="Eager")):
            for sizes in layers(small_model(family, **members), plan, stack):
                meter = Meter()
                layer_forward(meter, sizes, saving=True)
                layer_backward(meter, sizes)
                assert meter.now == [0, sizes.hidden, 0, 0], plan
                layer_forward(meter, sizes, saving=False)
                assert meter.now == [0, 2 * sizes.hidden, 0, 0], plan


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_saving_only_the_output_stays(family: str) -> None:
    for sizes in layers(small_model(family), TrainingPlan(48), DEFAULT_STACK):
        meter = Meter()
        layer_forward(meter, sizes, saving=False)
        assert meter.now == [0, sizes.hidden, 0, 0]
