"""Messages of jobs that fit no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.api.quantities import GIB, binary_size
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.sizing.refusal import LONGEST_MESSAGE, bounded

from tests.support.sizing_jobs import infeasible, make_request, on_node, product, sized

FAILED = {"microBatchSize": 2, "gradientCheckpointing": "Forbid"}
"""Settings with which a job ran out of memory on a 24 GB card."""


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA L4"])
def test_a_message_says_how_much_memory_is_missing_and_which_change_helps(
    name: str,
) -> None:
    asked, gpu = make_request(FAILED), product(name)
    usable = gpu.usable_bytes or 0
    decision = infeasible(decide_training(asked, [on_node(gpu, "gpu-node")]))
    assert decision.reason == "DoesNotFit"
    needed = decision.estimate.device_bytes
    assert needed == asked.ladder(gpu)[-1].estimate.device_bytes > usable
    largest = decision.estimate.largest_terms()[0]
    for part in (
        "gpu-node",
        name,
        binary_size(needed),
        binary_size(usable),
        f"{binary_size(needed - usable)} too little",
        largest.name,
        binary_size(largest.bytes),
        "micro-batch 2 x 2,048 tokens",
        "training.gradientCheckpointing: Auto",
    ):
        assert part in decision.message
    assert decision.change is not None
    assert binary_size(decision.change.rung.estimate.device_bytes) in decision.message
    assert decision.smallest is not None
    assert decision.smallest.product in decision.message
    assert (decision.smallest.usable_bytes or 0) >= needed


def test_a_message_names_the_size_of_weights_cast_to_float32() -> None:
    """An unquantized model, cast to float32 while preparing: four bytes for every parameter."""
    stack = replace(DEFAULT_STACK, name="old-pipeline", quantization="None", cast_to_float32=True)
    asked = make_request(stack=stack)
    decision = infeasible(decide_training(asked, [on_node(product("NVIDIA A10G"))]))
    in_float32 = 4 * asked.shape.parameters
    prepare = decision.estimate.phases[Phase.PREPARE]
    assert in_float32 <= prepare <= 1.05 * in_float32
    assert f"{in_float32 // GIB}." in decision.message
    assert Phase.PREPARE.value in decision.message


@pytest.mark.parametrize("length", [16, 2048, 131072, 1_048_576])
def test_a_message_stays_within_its_limit_for_any_name_and_size(length: int) -> None:
    offer = on_node(sized(GIB, "x" * 400), "n" * 253)
    message = infeasible(decide_training(make_request({"maximumLength": length}, length), [offer])).message
    assert len(message) <= LONGEST_MESSAGE
    assert "too little" in message


def test_whole_sentences_are_dropped_if_there_is_no_room() -> None:
    assert bounded(["a." * 400, "b." * 200]) == "a." * 400
    assert len(bounded(["a" * 2000])) == LONGEST_MESSAGE
