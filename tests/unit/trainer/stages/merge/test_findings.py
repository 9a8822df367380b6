from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.stages.merge.findings import with_findings

from tests.support.results import PROVEN

assert PROVEN.verification is not None
_PROVEN = PROVEN.verification.model_copy(update={"warnings": None, "weakest_survival": 0.95})
_TENSOR = "model.layers.0.self_attn.q_proj.weight"


def codes(**changes: Any) -> list[str]:
    found = with_findings(_PROVEN.model_copy(update=changes)).warnings
    return [warning.code for warning in found or ()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"surviving_update": 0.9, "weakest_survival": 0.9}, []),
        ({"verdict": "Unproven"}, ["MergeUnproven"]),
        ({"surviving_update": 0.899}, ["UpdateLost"]),
        ({"weakest_survival": 0.899}, ["UpdateLostInTensor"]),
        ({"weakest_survival": -1.0, "surviving_update": 0.2, "verdict": "Unproven"},
         ["MergeUnproven", "UpdateLost", "UpdateLostInTensor"]),
        ({"verdict": None, "surviving_update": None, "weakest_survival": None}, []),
    ],
)  # fmt: skip
def test_a_finding_is_named(changes: dict[str, Any], expected: list[str]) -> None:
    assert codes(**changes) == expected


def test_an_update_that_drowned_in_rounding_noise_is_wholly_lost() -> None:
    found = with_findings(_PROVEN.model_copy(update={"surviving_update": -1.5})).warnings
    assert found is not None
    assert (found[0].value, found[0].message.split(" of ")[0]) == (-1.5, "rounding left none")


def test_a_merge_without_findings_says_nothing() -> None:
    assert with_findings(_PROVEN) == _PROVEN


def test_findings_have_their_numbers_and_fit_the_contract() -> None:
    changes = {
        "verdict": "Unproven",
        "base_divergence": 1.25e-6,
        "noise_divergence": 4e-6,
        "surviving_update": 0.42,
        "weakest_tensor": _TENSOR,
        "weakest_survival": 0.1,
    }
    found = with_findings(_PROVEN.model_copy(update=changes)).warnings
    assert found is not None
    unproven, lost, tensor = found
    assert (unproven.value, unproven.threshold) == (1.25e-6, 4e-6)
    assert "1.25e-06 against 4e-06" in unproven.message
    assert (lost.value, lost.threshold) == (0.42, 0.9)
    assert "42%" in lost.message
    assert _TENSOR in tensor.message
    assert all(len(warning.message) <= 256 for warning in found)
