from __future__ import annotations

import math

import pytest
from finetune_trainer.quantization.rounding import RoundedSums
from finetune_trainer.stages.merge.survival import Survival, SurvivalReport

WHOLE = RoundedSums(product=4.0, intended=4.0, error=0.0)
HALF = RoundedSums(product=0.5, intended=1.0, error=0.25)


def test_projection_and_error_are_relative_to_the_intended_update() -> None:
    assert Survival.of(HALF) == Survival(0.5, 0.5)
    assert Survival.of(RoundedSums(1.0, 4.0, 9.0)) == Survival(0.25, 1.5)


def test_an_update_of_zero_survives_wholly() -> None:
    assert Survival.of(RoundedSums()) == Survival(1.0, 0.0)


def test_the_total_weighs_tensors_by_their_update() -> None:
    report = SurvivalReport.of({"b": HALF, "a": WHOLE})
    assert list(report.tensors) == ["a", "b"]
    assert report.total.projection == pytest.approx(4.5 / 5)
    assert report.total.relative_error == pytest.approx(math.sqrt(0.25 / 5))
    assert report.weakest() == ("b", Survival(0.5, 0.5))


def test_result_and_manifest_get_their_numbers() -> None:
    report = SurvivalReport.of({"b": HALF, "a": WHOLE})
    assert report.numbers() == {"surviving_update": 0.9, "weakest_tensor": "b", "weakest_survival": 0.5}
    assert report.pairs() == {"a": (1.0, 0.0), "b": (0.5, 0.5)}


def test_a_model_without_updates_has_no_weakest_tensor() -> None:
    report = SurvivalReport.of({})
    assert report.weakest() is None
    assert report.numbers() == {}
    assert report.total == Survival(1.0, 0.0)
