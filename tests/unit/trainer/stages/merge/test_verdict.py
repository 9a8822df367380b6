from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from finetune_trainer.stages.merge.measures import Measures, RowMeasure, Slope
from finetune_trainer.stages.merge.verdict import (
    fault,
    fault_without_effect,
    noise,
    slope_tolerance,
    verdict,
    weight_fault,
)
from finetune_trainer.stages.merge.weight_proof import TensorProof

NAN = float("nan")
ROW = RowMeasure(row=4, positions=10, effect=0.1, divergence=1e-5, rounding=1e-5, arithmetic=0.0)
GOOD = Measures(
    rows=(ROW, replace(ROW, row=9)),
    tokens=40,
    trained_loss=1.2,
    merged_loss=1.2,
    exact_loss=1.2,
    slope=Slope(1.0, 0.001),
    change=0.4,
    rounding=0.004,
    arithmetic=0.0,
    deviation=1e-6,
)


def of_rows(**members: Any) -> Measures:
    return replace(GOOD, rows=tuple(replace(row, **members) for row in GOOD.rows))


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        (GOOD, None),
        (of_rows(divergence=0.0019), None),
        (of_rows(divergence=0.0021), "nats a token (2% of the adapter's effect 0.1 and the noise 1e-05), found 0.0021"),
        (of_rows(effect=0.0, divergence=2.9e-5), None),
        (of_rows(effect=0.0, divergence=3.2e-5), "KL(trained || merged) must be"),
        (of_rows(effect=0.0, arithmetic=0.002, divergence=0.005), None),
        (of_rows(effect=0.0, arithmetic=NAN, divergence=0.014), None),
        (of_rows(effect=0.0, arithmetic=NAN, divergence=0.016), "KL(trained || merged) must be"),
        (of_rows(divergence=NAN), "found nan"),
        (of_rows(effect=NAN), "found 1e-05"),
        (replace(GOOD, rows=(ROW, replace(ROW, row=9, effect=0.0, divergence=5e-5))), None),
        (replace(GOOD, rows=(ROW, replace(ROW, row=9, effect=0.0, divergence=7e-5))), "of row 9 must be at most"),
        (replace(GOOD, slope=Slope(0.9, 0.0)), "must be 0.95 to 1.05 of the trained model's, found 0.9"),
        (replace(GOOD, slope=Slope(1.1, 0.0)), "found 1.1"),
        (replace(GOOD, slope=Slope(0.951, 0.0)), None),
        (replace(GOOD, slope=Slope(0.9, 0.02)), None),
        (replace(GOOD, slope=Slope(NAN, 0.0)), "found nan"),
        (replace(GOOD, slope=Slope(1.0, NAN)), "must be nan"),
        (replace(GOOD, deviation=3e-4), "found a deviation of 0.0003"),
        (replace(GOOD, deviation=2e-4), None),
        (replace(GOOD, deviation=0.02, arithmetic=0.05), None),
        (replace(GOOD, deviation=0.03, arithmetic=0.05), "found a deviation of 0.03"),
        (replace(GOOD, deviation=NAN), None),
        (replace(GOOD, deviation=NAN, merged_loss=NAN), "found a deviation of nan"),
    ],
)  # fmt: skip
def test_each_number_has_its_bound_and_is_named_with_it(measures: Measures, words: str | None) -> None:
    found = fault(measures)
    assert (found is None) is (words is None), found
    assert words is None or words in (found or "")


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        (GOOD, "Proven"),
        (of_rows(effect=1e-5), "Unproven"),
        (of_rows(effect=0.001, arithmetic=0.002), "Unproven"),
        (of_rows(effect=0.004, arithmetic=NAN), "Unproven"),
        (replace(GOOD, slope=Slope(1.0, 0.02)), "Proven"),
        (replace(GOOD, slope=Slope(1.0, 0.02), deviation=NAN), "Unproven"),
        (replace(GOOD, slope=Slope(1.0, 0.02), change=0.001), "Unproven"),
        (replace(GOOD, slope=Slope(1.0, 0.01), deviation=NAN), "Proven"),
    ],
)
def test_a_comparison_that_cannot_show_a_fault_proves_nothing(measures: Measures, expected: str) -> None:
    """The effect is below the noise, or neither slope nor deviation could show a tenth of it."""
    assert verdict(measures) == expected


def test_noise_and_tolerance_are_what_the_result_reports() -> None:
    assert noise(replace(ROW, rounding=0.001, arithmetic=0.002)) == pytest.approx(0.003)
    assert noise(replace(ROW, rounding=0.001, arithmetic=NAN)) == pytest.approx(0.006)
    assert slope_tolerance(replace(GOOD, slope=Slope(1.0, 0.01))) == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("proof", "words"),
    [
        (TensorProof("a.weight", 10_000, 0, 1.0, 1.0, 0.1), None),
        (TensorProof("a.weight", 10_000, 7, 1.0, 1.0, 0.1), None),
        (TensorProof("a.weight", 10_000, 8, 0.5, 1.0, 0.1), "(it has 0.5 of the update), found other values in 8 of 10000"),
        (TensorProof("norm.weight", 10_000, 0), None),
        (TensorProof("norm.weight", 10_000, 1), "tensor norm.weight must be the base as trained, found other values in 1"),
    ],
)  # fmt: skip
def test_a_tensor_with_other_values_is_named(proof: TensorProof, words: str | None) -> None:
    found = weight_fault([TensorProof("first", 5, 0), proof])
    assert (found is None) is (words is None)
    assert words is None or words in (found or "")


@pytest.mark.parametrize(
    ("divergence", "merged_loss", "agrees"),
    [
        (0.005, 0.501, True),
        (0.021, 0.5, False),
        (0.005, 0.52, False),
        (0.005, 0.48, False),
        (math.nan, 0.5, False),
        (0.005, math.nan, False),
    ],
)
def test_an_older_record_is_judged_by_absolute_bounds(
    divergence: float, merged_loss: float, agrees: Any
) -> None:
    assert (fault_without_effect(divergence, 20, 0.5, merged_loss) is None) is agrees
