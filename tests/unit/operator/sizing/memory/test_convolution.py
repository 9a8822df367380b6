"""The short convolution of a layer on the meter, by hand."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.sizing.memory.convolution import convolution_backward, convolution_forward
from finetune_operator.sizing.memory.layer_sizes import layer_sizes
from finetune_operator.sizing.memory.meter import Kind, Meter
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.sizing_models import small_model

PLAN = TrainingPlan(48, target_modules="AttentionOnly", gradient_checkpointing=False)
LAYER = layer_sizes(
    small_model("lfm2"), PLAN, replace(DEFAULT_STACK, quantization="None"), windowed=False, convolution=True
)


def test_a_convolution_saves_its_three_inputs_their_product_and_its_result() -> None:
    meter = Meter()
    convolution_forward(meter, LAYER, saving=True)
    assert meter.now[Kind.SAVED] == 5 * LAYER.hidden
    assert meter.now[Kind.TEMPORARY] == LAYER.hidden
    convolution_backward(meter, LAYER, released=0, keep=False)
    assert meter.now == [0, LAYER.hidden, 0, 0]


def test_without_saving_all_but_the_output_is_freed() -> None:
    meter = Meter()
    convolution_forward(meter, LAYER, saving=False)
    assert meter.now == [0, LAYER.hidden, 0, 0]
    # The joint result, the product, the convolution's result, the gated result and the output.
    assert meter.peak == 7 * LAYER.hidden


def test_an_adapter_also_saves_the_input_of_the_output_matrix() -> None:
    layer = layer_sizes(
        small_model("lfm2"),
        replace(PLAN, target_modules="AllLinear"),
        DEFAULT_STACK,
        windowed=False,
        convolution=True,
    )
    meter = Meter()
    convolution_forward(meter, layer, saving=True)
    low_rank = layer.attention_in[0].low_rank + layer.attention_out.low_rank
    matrices = (layer.attention_in[0], layer.attention_out)
    factors = sum(matrix.factor_in + matrix.factor_out for matrix in matrices)
    assert factors > 0
    assert meter.now[Kind.SAVED] == 6 * layer.hidden + low_rank + factors
