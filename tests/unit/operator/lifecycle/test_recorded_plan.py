from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.plan import ONE_GPU, Layout
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.lifecycle.recorded_plan import (
    recorded_abilities,
    recorded_gpus,
    recorded_ladder,
    recorded_layout,
    recorded_optimizers,
    recorded_plan,
    recorded_rate,
)

from tests.support.operator import make_spec

TRAINING: dict[str, Any] = {
    "microBatchSize": 2,
    "gradientCheckpointing": True,
    "sequenceLength": 512,
    "optimizer": "AdamW8Bit",
}


def spec(gpus: int = 1) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(resources={"gpus": gpus}))


@pytest.mark.parametrize(
    ("gpus", "recorded", "layout"),
    [
        (1, {}, ONE_GPU),
        (4, {}, Layout(1, 4)),
        (4, {"gpusPerNode": 2}, Layout(2, 2)),
        (4, {"gpusPerNode": 2, "parallelism": "FullyShard"}, Layout(2, 2, "FullyShard")),
        # A later operator may record another way.
        (4, {"gpusPerNode": 4, "parallelism": "Pipeline"}, Layout(1, 4)),
    ],
)
def test_a_plan_keeps_how_its_gpus_share_the_model(
    gpus: int, recorded: dict[str, Any], layout: Layout
) -> None:
    assert recorded_layout(spec(gpus), {"training": recorded}) == layout
    found = recorded_plan(spec(gpus), {"training": {**TRAINING, **recorded}}, "cuda")
    assert (found.layout, found.micro_batch_size) == (layout, 2)


def test_without_a_record_the_plan_needs_little_memory() -> None:
    found = recorded_plan(spec(), {}, "cuda")
    assert (found.micro_batch_size, found.gradient_checkpointing, found.layout) == (1, True, ONE_GPU)


def test_what_an_earlier_operator_did_not_record_has_its_default() -> None:
    assert recorded_rate({"training": TRAINING}) is None
    assert recorded_optimizers({"training": {}}) == {"AdamW", "AdamW8Bit", "PagedAdamW8Bit"}
    assert recorded_abilities({}).optimizers == ("PagedAdamW8Bit",)
    (rung,) = recorded_ladder({"ladder": [{"microBatchSize": 1, "gradientCheckpointing": False}]})
    assert (rung.optimizer, rung.weights) == ("PagedAdamW8Bit", "Quantized")


@pytest.mark.parametrize(
    ("recorded", "layout"),
    [
        ({}, ONE_GPU),
        ({"nodes": 1, "gpusPerNode": 3}, Layout(1, 3)),
        ({"nodes": 2, "gpusPerNode": 2}, Layout(2, 2)),
    ],
)
def test_a_number_that_was_chosen_is_the_recorded_one(recorded: dict[str, Any], layout: Layout) -> None:
    asked = FineTuneJobSpec.parse(make_spec(resources={"maximumGpus": 8}))
    assert recorded_gpus(asked, {"training": recorded}) == layout.gpus
    assert recorded_layout(asked, {"training": recorded}) == layout
    assert recorded_gpus(asked, {}) == 1
    assert recorded_gpus(spec(4), {"training": recorded}) == 4, "that of the spec is no choice"
