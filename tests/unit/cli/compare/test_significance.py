from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.compare.significance import Measured, compare, comparisons, obstacle

from tests.support.cli_jobs import cli_job, succeeded


def measured(tuned: float, difference: float, half: float) -> Measured:
    return Measured(tuned, difference, difference - half, difference + half)


@pytest.mark.parametrize(
    ("second", "higher_is_better", "better"),
    [
        (measured(0.5, -1.5, 0.03), False, "second"),
        (measured(0.7, -1.3, 0.03), False, "first"),
        (measured(0.59, -1.41, 0.03), False, None),
        (measured(0.7, -1.3, 0.03), True, "second"),
    ],
)
def test_only_a_difference_beyond_chance_has_a_better_job(
    second: Measured, *, higher_is_better: bool, better: str | None
) -> None:
    found = compare("Loss", measured(0.6, -1.4, 0.04), second, higher_is_better=higher_is_better)
    assert found.better == better
    assert (found.high - found.low) / 2 == pytest.approx(0.05)


def test_equal_jobs_do_not_differ() -> None:
    same = measured(0.6, -1.4, 0.0)
    assert compare("Loss", same, same, higher_is_better=False).better is None


def test_all_measures_of_both_jobs_are_compared() -> None:
    def evaluation(tuned: str, difference: str, low: str, high: str) -> dict[str, Any]:
        share = {"base": "0.1", "tuned": tuned, "difference": difference, "interval": [low, high]}
        return {
            "tunedLoss": "0.5",
            "difference": "-1.0",
            "interval": ["-1.1", "-0.9"],
            "tokenAccuracy": share,
            "metrics": [{"name": "ExactMatch", **share}, {"name": "JsonValid", "reason": "NoJson"}],
        }

    found = list(
        comparisons(evaluation("0.6", "0.5", "0.45", "0.55"), evaluation("0.9", "0.8", "0.75", "0.85"))
    )
    assert [(item.name, item.better) for item in found] == [
        ("Loss", None),
        ("TokenAccuracy", "second"),
        ("ExactMatch", "second"),
    ]


def test_a_measure_without_readable_numbers_is_left_out() -> None:
    good = {"tunedLoss": "0.5", "difference": "-1.0", "interval": ["-1.1", "-0.9"]}
    unreadable: list[dict[str, Any]] = [{"tunedLoss": "NaN"}, {"interval": []}, {"difference": None}]
    for bad in unreadable:
        assert list(comparisons(good, {**good, **bad})) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"evaluation": None}, "other has no evaluation"),
        ({"model": {"digest": "sha256:another"}}, "the base models differ"),
        ({"model": None}, "the base models differ"),
        ({"dataset": {"digest": "sha256:another"}}, "the validation rows differ"),
        ({"evaluation": {"rows": 41}}, "the numbers of validation rows differ"),
    ],
)
def test_different_bases_and_rows_are_not_compared(changes: dict[str, Any], text: str) -> None:
    found = obstacle(succeeded(), succeeded("other", **changes))
    assert found is not None
    assert text in found


def test_the_same_validation_file_makes_jobs_on_other_training_rows_comparable() -> None:
    validation = {"validationSource": {"etag": "a"}, "validationExamples": 40}
    first = succeeded(dataset={"digest": "sha256:one", **validation})
    second = succeeded("other", dataset={"digest": "sha256:two", **validation})
    assert obstacle(first, second) is None


def test_jobs_on_the_same_rows_are_compared() -> None:
    assert obstacle(succeeded(), succeeded("other")) is None
    assert obstacle(succeeded(), cli_job("new")) == "new has no evaluation"
