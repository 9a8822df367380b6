"""Messages of jobs that fit no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.api.quantities import GIB, binary_size
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.gpus.gpu import Offer
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
    assert asked.shape is not None
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


def slice_of(node: str, name: str, usable: int | None) -> Offer:
    return replace(on_node(sized(usable, f"Slice {name}"), node), resource_name=f"nvidia.com/mig-{name}")


def test_a_missing_resource_names_the_offered_slices_and_the_one_that_would_do() -> None:
    small, large = slice_of("a", "1g.5gb", 4 * GIB), slice_of("b", "3g.40gb", 38 * GIB)
    others = [large, slice_of("c", "3g.40gb", 38 * GIB), small, slice_of("d", "2g.10gb", None)]
    message = infeasible(decide_training(make_request(), [], lambda: others)).message
    assert "must offer nvidia.com/gpu, found only nvidia.com/mig-1g.5gb (4.00 GiB, node a), " in message
    assert (
        "nvidia.com/mig-2g.10gb (unknown size, node d), nvidia.com/mig-3g.40gb (38.0 GiB, 2 nodes)."
        in message
    )
    assert (
        "The job fits nvidia.com/mig-3g.40gb with 38.0 GiB: set resources.gpuResourceName to it." in message
    )
    assert len(message) <= LONGEST_MESSAGE
    none = infeasible(decide_training(make_request(), [], lambda: [small])).message
    assert "nvidia.com/mig-1g.5gb" in none
    assert "gpuResourceName" not in none


def test_a_slice_that_is_too_small_names_a_larger_resource() -> None:
    small = slice_of("a", "1g.5gb", 4 * GIB)
    decision = infeasible(
        decide_training(make_request(), [small], lambda: [slice_of("b", "3g.40gb", 38 * GIB)])
    )
    assert decision.reason == "DoesNotFit"
    assert "The job fits nvidia.com/mig-3g.40gb" in decision.message


def test_many_resources_are_counted() -> None:
    others = [slice_of("a", f"{number}g.5gb", 4 * GIB) for number in range(8)]
    message = infeasible(decide_training(make_request(), [], lambda: others)).message
    assert "nvidia.com/mig-4g.5gb (4.00 GiB, node a) and 3 more." in message
    assert "mig-5g" not in message


def test_a_slice_that_the_job_may_not_use_is_not_proposed() -> None:
    barred = replace(slice_of("a", "3g.40gb", 38 * GIB), taints=({"key": "team", "effect": "NoSchedule"},))
    message = infeasible(decide_training(make_request(), [], lambda: [barred])).message
    assert "found only nvidia.com/mig-3g.40gb" in message
    assert "set resources.gpuResourceName" not in message
