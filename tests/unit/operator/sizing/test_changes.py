"""The smallest change that makes a job fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.quantities import GIB
from finetune_operator.api.spec import Training
from finetune_operator.sizing.changes import Change, smallest_change
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.request import SizingRequest

from tests.support.sizing_jobs import infeasible, make_request, make_spec, on_node, sized

FAILED = {"microBatchSize": 2, "gradientCheckpointing": "Forbid"}
"""Settings with which a job ran out of memory on a 24 GB card."""


def change_for(
    training: dict[str, Any], usable: int, length: int = 2048
) -> tuple[SizingRequest, Change | None]:
    asked = make_request(training, length)
    found = smallest_change(asked.spec.training, length, asked.estimator(None), "Allow", usable)
    return asked, found


def applied(training: dict[str, Any], change: Change) -> tuple[Training, int | None]:
    """The settings of a spec after a person has written the change into it."""
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
    """A GPU just large enough for the most frugal rung with short rows leaves one answer."""
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
def test_a_change_written_into_the_spec_makes_the_job_fit(training: dict[str, Any], usable: int) -> None:
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


def test_a_number_gets_the_mildest_value_that_fits() -> None:
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


def test_a_length_is_the_largest_multiple_of_64_that_fits() -> None:
    asked, change = change_for({"maximumLength": 65536}, 16 * GIB, 65536)
    assert change is not None
    (setting,) = change.settings
    length = int(setting.value)
    assert length % 64 == 0
    longer = replace(asked, sequence_length=length + 64)
    assert longer.ladder(None)[-1].estimate.high_bytes > 16 * GIB


def test_no_change_is_proposed_if_none_helps() -> None:
    asked, change = change_for(FAILED, GIB)
    assert change is None
    decision = infeasible(decide_training(asked, [on_node(sized(GIB))]))
    assert "No change" in decision.message
