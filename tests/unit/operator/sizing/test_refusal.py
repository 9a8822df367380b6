"""What a job is told that does not fit, and the smallest change that helps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.quantities import GIB, binary_size
from finetune_operator.api.spec import Training
from finetune_operator.sizing.changes import Change, smallest_change
from finetune_operator.sizing.decision import SizingRequest, decide_training
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.terms import Phase
from finetune_operator.sizing.refusal import LONGEST_MESSAGE, bounded

from tests.support.sizing_jobs import infeasible, make_request, make_spec, on_node, product, sized

FAILED = {"microBatchSize": 2, "gradientCheckpointing": "Forbid"}
"""The settings with which the old pipeline's job ended on a 24 GB card."""


def change_for(
    training: dict[str, Any], usable: int, length: int = 2048
) -> tuple[SizingRequest, Change | None]:
    asked = make_request(training, length)
    found = smallest_change(asked.spec.training, length, asked.estimator(None), "Allow", usable)
    return asked, found


def applied(training: dict[str, Any], change: Change) -> tuple[Training, int | None]:
    """The settings of a spec into which a person has written the change."""
    values: dict[str, Any] = {"training": dict(training)}
    for setting in change.settings:
        *path, last = setting.path.split(".")
        target = values
        for step in path:
            target = target.setdefault(step, {})
        target[last] = int(setting.value) if setting.value.isdigit() else setting.value
    parsed = make_spec(values["training"]).training
    shortened = any(setting.path == "training.maximumLength" for setting in change.settings)
    return parsed, parsed.maximum_length if shortened else None


@pytest.mark.parametrize("name", ["NVIDIA A10G", "NVIDIA L4"])
def test_the_old_failures_settings_are_refused_with_what_is_missing_and_the_change_that_helps(
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


def test_the_old_pipelines_stack_is_refused_naming_the_size_of_its_float32_weights() -> None:
    """An unquantised model, cast to float32 while preparing: four bytes for every parameter."""
    stack = replace(DEFAULT_STACK, name="old-pipeline", quantization="None", cast_to_float32=True)
    asked = make_request(stack=stack)
    decision = infeasible(decide_training(asked, [on_node(product("NVIDIA A10G"))]))
    in_float32 = 4 * asked.shape.parameters
    prepare = decision.estimate.phases[Phase.PREPARE]
    assert in_float32 <= prepare <= 1.05 * in_float32
    assert f"{in_float32 // GIB}." in decision.message
    assert Phase.PREPARE.value in decision.message


@pytest.mark.parametrize(
    ("training", "paths"),
    [
        ({"gradientCheckpointing": "Forbid"}, ["training.gradientCheckpointing"]),
        ({"microBatchSize": 16, "gradientCheckpointing": "Require"}, ["training.microBatchSize"]),
        (
            {"microBatchSize": 16, "gradientCheckpointing": "Forbid"},
            ["training.gradientCheckpointing", "training.microBatchSize"],
        ),
        ({}, ["training.maximumLength"]),
    ],
)
def test_the_least_harmful_change_is_proposed(training: dict[str, Any], paths: list[str]) -> None:
    """A GPU just large enough for the frugal way to run short rows (or for all of it) leaves one answer."""
    length = 2048 if training else 8192
    frugal = make_request({}, 2048).ladder(None)[-1].estimate.high_bytes
    _, change = change_for({**training, "maximumLength": length}, frugal, length)
    assert change is not None
    assert [setting.path for setting in change.settings] == paths
    assert change.shortens_data == ("training.maximumLength" in paths)


@pytest.mark.parametrize("usable", [5, 6, 7, 9, 12, 16])
@pytest.mark.parametrize(
    "training",
    [
        {"microBatchSize": 16, "gradientCheckpointing": "Forbid"},
        {"lora": {"rank": 512, "dropout": 0.1}, "microBatchSize": 4},
        {"lora": {"variant": "DoRA", "targetModules": "AllLinear"}, "maximumLength": 8192},
        {"gradientCheckpointing": "Forbid", "microBatchSize": 1, "lora": {"rank": 64}},
    ],
)
def test_a_change_that_is_written_into_the_spec_makes_it_fit(training: dict[str, Any], usable: int) -> None:
    length = training.get("maximumLength", 2048)
    asked, change = change_for(training, usable * GIB, length)
    if change is None or asked.ladder(None)[-1].fits(usable * GIB):
        return
    settings, shortened = applied(training, change)
    spec = asked.spec.model_copy(update={"training": settings})
    changed = replace(asked, spec=spec, sequence_length=shortened or length)
    last = changed.ladder(None)[-1]
    assert last.estimate == change.rung.estimate
    assert last.fits(usable * GIB)


def test_of_a_number_the_mildest_value_that_fits_is_proposed() -> None:
    training = {"microBatchSize": 16, "gradientCheckpointing": "Require"}
    usable = (
        make_request({"microBatchSize": 4, "gradientCheckpointing": "Require"})
        .ladder(None)[-1]
        .estimate.high_bytes
    )
    _, change = change_for(training, usable)
    assert change is not None
    assert str(change) == "training.microBatchSize: 4"
    _, tighter = change_for(training, usable - 1)
    assert tighter is not None
    assert str(tighter) == "training.microBatchSize: 2"


def test_a_length_is_a_multiple_of_64_and_the_next_one_would_not_fit() -> None:
    asked, change = change_for({"maximumLength": 65536}, 16 * GIB, 65536)
    assert change is not None
    (setting,) = change.settings
    length = int(setting.value)
    assert length % 64 == 0
    longer = replace(asked, sequence_length=length + 64)
    assert longer.ladder(None)[-1].estimate.high_bytes > 16 * GIB


def test_where_no_change_helps_none_is_made_up() -> None:
    asked, change = change_for(FAILED, GIB)
    assert change is None
    decision = infeasible(decide_training(asked, [on_node(sized(GIB))]))
    assert "No change" in decision.message


@pytest.mark.parametrize("length", [16, 2048, 131072, 1_048_576])
def test_a_message_is_bounded_whatever_names_and_sizes_are(length: int) -> None:
    offer = on_node(sized(GIB, "x" * 400), "n" * 253)
    message = infeasible(decide_training(make_request({"maximumLength": length}, length), [offer])).message
    assert len(message) <= LONGEST_MESSAGE
    assert "too little" in message


def test_whole_sentences_are_dropped_where_there_is_no_room() -> None:
    assert bounded(["a." * 400, "b." * 200]) == "a." * 400
    assert len(bounded(["a" * 2000])) == LONGEST_MESSAGE
