"""The attention block on the meter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.sizing.memory.attention import attention_backward, attention_forward
from finetune_operator.sizing.memory.layer_sizes import LayerSizes, layer_sizes
from finetune_operator.sizing.memory.meter import Kind, Meter
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, Attention
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

KERNELS: list[Attention] = ["Sdpa", "SdpaMasked", "Flash", "Eager"]
FAMILIES = ["llama", "qwen3", "gemma2", "phi3", "glm", "ernie4_5", "olmo2"]


def layer(family: str, attention: Attention, **plan: Any) -> LayerSizes:
    values = replace(TrainingPlan(48), **plan)
    return layer_sizes(
        small_model(family), values, replace(DEFAULT_STACK, attention=attention), windowed=False
    )


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_backward_pass_frees_all_that_the_forward_pass_saved(family: str, attention: Attention) -> None:
    plans: list[dict[str, Any]] = [
        {},
        {"dropout": True},
        {"target_modules": "AttentionOnly"},
        {"variant": "DoRA"},
    ]
    for plan in plans:
        sizes = layer(family, attention, **plan)
        meter = Meter()
        released = sizes.hidden if sizes.attention_saves_input else 0
        meter.alloc(released, Kind.SAVED)
        attention_forward(meter, sizes, saving=True)
        assert meter.now[Kind.TEMPORARY] == sizes.hidden
        attention_backward(meter, sizes, released=released, keep=False)
        assert meter.now == [0, sizes.hidden, 0, 0]


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_saving_only_the_output_stays(family: str, attention: Attention) -> None:
    sizes = layer(family, attention)
    meter = Meter()
    attention_forward(meter, sizes, saving=False)
    assert meter.now == [0, sizes.hidden, 0, 0]


def test_eager_attention_saves_a_softmax_in_16_and_32_bits() -> None:
    sizes = layer("llama", "Eager")
    meter = Meter()
    attention_forward(meter, sizes, saving=True)
    # Six bytes for each of four heads and each pair of 48 positions.
    assert meter.now[Kind.SCORES] == 6 * 4 * 48 * 48


def test_a_fused_kernel_has_no_scores() -> None:
    meter = Meter()
    attention_forward(meter, layer("llama", "Sdpa"), saving=True)
    assert meter.at_peak[Kind.SCORES] == 0
