"""Every warning has a threshold, a message and complete documentation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import Thresholds
from finetune_trainer.report.analysis import Analysis
from finetune_trainer.report.statistics import (
    Answers,
    Capacity,
    Coverage,
    FrequentAnswer,
    Histogram,
    LanguageMix,
    LanguageShare,
    NearCopies,
    Prompts,
    RowCounts,
    Statistics,
)
from finetune_trainer.report.warnings import POLICIES, DatasetWarning, dataset_warnings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.repository import ROOT

DOCUMENT = ROOT / "docs" / "dataset-report.md"
FLAT = Histogram((1, 2), (100,), 100, 1.0, 1, 1, 1, 1, 1)
ROWS = RowCounts(100, 0, 0, 0, 100, 0, 0, 0, {})
GOOD = Statistics(
    rows=ROWS,
    training_rows=90,
    validation_rows=10,
    training_examples=90,
    validation_examples=10,
    lengths=FLAT,
    supervised=FLAT,
    near_duplicates=NearCopies(0, 90, 0.8, ()),
    leaked=NearCopies(0, 10, 0.8, ()),
    answers=Answers(90, 90, 0, ()),
    prompts=Prompts(90, 90, 90, 0.8),
    languages=LanguageMix(90, 90, (LanguageShare("en", 90, 1.0),)),
    reasoning_is_plain_text=False,
    capacity=Capacity(1000, 1_000_000),
    coverage=Coverage(10, 10, 0.5, ()),
)
MIXED = LanguageMix(90, 80, (LanguageShare("en", 60, 0.75), LanguageShare("de", 20, 0.25)))
# For each code: the statistics that cross its threshold, the value, and numbers that the message must hold.
CROSSING: dict[str, tuple[dict[str, Any], float, list[str]]] = {
    "FewRows": ({"training_rows": 49}, 49, ["49"]),
    "ValidationLeakage": ({"leaked": NearCopies(1, 10, 0.8, ())}, 0.1, ["1 of 10", "10%"]),
    "ReasoningAsText": (
        {"rows": replace(ROWS, with_reasoning=100), "reasoning_is_plain_text": True}, 1.0, ["100 of 100 rows", "Strip"],
    ),
    "MixedReasoning": ({"rows": replace(ROWS, with_reasoning=90)}, 0.1, ["90%"]),
    "RowsRefused": (
        {"rows": replace(ROWS, refused=3, refused_by_reason={"TooLong": 2, "EmptyAnswer": 1})},
        0.03, ["3 of 100", "2 TooLong"],
    ),
    "TargetPromptsUncovered": ({"coverage": Coverage(10, 7, 0.5, ())}, 0.7, ["3 of 10"]),
    "LowPromptVariety": ({"prompts": Prompts(90, 3, 90, 0.25)}, 0.25, ["variety 0.25"]),
    "NearDuplicateRows": ({"near_duplicates": NearCopies(27, 90, 0.8, ())}, 0.3, ["27 of 90", "30%"]),
    "DuplicateRows": ({"rows": replace(ROWS, duplicates=5, held_out_copies=1)}, 0.06, ["6 of 100"]),
    "EmptyAnswers": ({"rows": replace(ROWS, empty_answers=3)}, 0.03, ["3 of 100"]),
    "EscapedControlTokens": ({"rows": replace(ROWS, escaped=3)}, 0.03, ["3 of 100", "server"]),
    "RepeatedAnswers": (
        {"answers": Answers(90, 73, 18, (FrequentAnswer(18, "no"),))}, 0.2, ["18 of 90", "18 times"],
    ),
    "MixedLanguages": ({"languages": MIXED}, 0.75, ["75% en", "25% de"]),
    "ShortenedRows": ({"rows": replace(ROWS, shortened=6)}, 0.06, ["6 of 100"]),
    "LoraCapacity": ({"capacity": Capacity(5_000_000, 1_000_000)}, 2.5, ["2.5 times", "1,000,000"]),
}  # fmt: skip


def test_good_data_gives_no_warning() -> None:
    assert dataset_warnings(GOOD, Thresholds()) == []


def test_every_policy_has_a_case() -> None:
    assert CROSSING.keys() == POLICIES.keys()


@pytest.mark.parametrize("code", list(CROSSING))
def test_a_value_across_its_threshold_warns(code: str) -> None:
    changes, value, named = CROSSING[code]
    (warning,) = dataset_warnings(replace(GOOD, **changes), Thresholds())
    assert warning.code == code
    assert warning.value == pytest.approx(value)
    assert all(text in warning.message for text in named), warning.message
    # The finding and the remedy.
    assert len(warning.message.split("; ")) == 2
    assert len(warning.message) <= 200


def test_unknown_statistics_give_no_warning() -> None:
    unknown = replace(
        GOOD, capacity=None, coverage=None, prompts=Prompts(1, 1, 1, None), languages=LanguageMix(50, 0, ())
    )
    assert dataset_warnings(unknown, Thresholds()) == []


def test_a_few_rows_give_no_warning_about_languages() -> None:
    few = LanguageMix(90, 19, (LanguageShare("en", 10, 10 / 19), LanguageShare("de", 9, 9 / 19)))
    assert dataset_warnings(replace(GOOD, languages=few), Thresholds()) == []


COUNT = st.integers(0, 100)
MAXIMA = {
    "refused_fraction", "duplicate_fraction", "near_duplicate_fraction", "leaked_fraction", "repeated_answer_fraction",
    "empty_answer_fraction",
    "mixed_reasoning_fraction", "reasoning_as_text_fraction", "shortened_fraction", "maximum_capacity_ratio",
}  # fmt: skip
MINIMA = {"minimum_rows", "minimum_prompt_variety", "minimum_language_fraction", "minimum_coverage"}
# These define the numbers, not when to warn.
SIMILARITIES = {"near_duplicate_similarity", "target_similarity"}


def test_every_threshold_is_a_maximum_a_minimum_or_a_similarity() -> None:
    assert set(Thresholds.model_fields) == MAXIMA | MINIMA | SIMILARITIES


@given(counts=st.tuples(*[COUNT] * 10), left=st.floats(0.0, 0.5), right=st.floats(0.0, 0.5))
def test_a_stricter_threshold_never_silences_a_warning(
    counts: tuple[int, ...], left: float, right: float
) -> None:
    refused, duplicates, near, leaked, answers, reasoning, empty, shortened, covered, kept = counts
    statistics = replace(
        GOOD,
        training_rows=kept,
        rows=RowCounts(300, refused, duplicates, 0, 100, reasoning, empty, shortened, {}),
        near_duplicates=NearCopies(near, 100, 0.8, ()),
        leaked=NearCopies(leaked, 100, 0.8, ()),
        answers=Answers(100, 100, answers, ()),
        prompts=Prompts(100, 100, 100, near / 100),
        coverage=Coverage(100, covered, 0.5, ()),
        capacity=Capacity(answers, 100),
        reasoning_is_plain_text=bool(leaked % 2),
        languages=replace(MIXED, languages=(LanguageShare("en", covered, covered / 100),)),
    )
    strict, lenient = sorted((left, right))
    loud = dict.fromkeys(MAXIMA, strict) | dict.fromkeys(MINIMA, 1 - strict)
    quiet = dict.fromkeys(MAXIMA, lenient) | dict.fromkeys(MINIMA, 1 - lenient)
    loud["minimum_rows"], quiet["minimum_rows"] = round(100 * (1 - strict)), round(100 * (1 - lenient))
    said = [
        {item.code for item in dataset_warnings(statistics, Thresholds().model_copy(update=values))}
        for values in (loud, quiet)
    ]
    assert said[1] <= said[0]


def test_documents_and_policies_name_the_same_codes_and_thresholds() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = text.split("\n## Warnings\n")[1]
    assert re.findall(r"^### (\w+)$", sections, re.MULTILINE) == list(POLICIES)
    defaults = Thresholds().model_dump(by_alias=True)
    stated = {name: float(value) for name, value in re.findall(r"`(\w+)` \(([0-9.]+)\)", sections)}
    assert stated == defaults


def test_the_report_summary_fits_into_a_termination_message() -> None:
    """The summary has every warning, with the longest numbers."""
    changes = {name: value for crossing, _, _ in CROSSING.values() for name, value in crossing.items()}
    changes["rows"] = RowCounts(
        10**9, 10**8, 10**8, 10**8, 10**9, 10**8, 10**8, 10**8, {"ControlTokenInContent": 10**8}, 10**8
    )
    statistics = replace(GOOD, **changes)
    warnings = tuple(dataset_warnings(statistics, Thresholds()))
    assert len(warnings) == len(POLICIES)
    head = Analysis(statistics, warnings, ()).summary().document()
    assert [warning["code"] for warning in head["warnings"]] == list(POLICIES)[:8]
    assert all(len(warning["message"]) <= 200 for warning in head.pop("warnings"))
    assert len(json.dumps(head)) <= 400


def test_a_warning_as_json_holds_plain_numbers() -> None:
    warning = DatasetWarning("FewRows", 1 / 3, 50, "m")
    assert warning.document() == {"code": "FewRows", "value": 0.333333, "threshold": 50, "message": "m"}
