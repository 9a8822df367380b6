"""The report as JSON values."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.report.document import VERSION, DatasetDocument, as_json
from finetune_trainer.report.statistics import NearCopies


@dataclass(frozen=True)
class Sample:
    first_value: float
    rows_by_reason: dict[str, tuple[int, ...]]


def test_members_are_camel_case_and_floats_have_six_digits() -> None:
    value = as_json(Sample(1 / 3, {"TooLong": (1, 2)}))
    assert value == {"firstValue": 0.333333, "rowsByReason": {"TooLong": [1, 2]}}


def test_derived_fractions_are_members_too() -> None:
    assert as_json(NearCopies(1, 4, 0.8, ()))["fraction"] == 0.25


def test_the_end_tokens_are_named_with_their_text() -> None:
    document = DatasetDocument(
        training_source={}, training_rows=DatasetReport(), settings={}, end_tokens=((2, "<|im_end|>"),)
    ).to_json()
    assert document["endTokens"] == [{"id": 2, "text": "<|im_end|>"}]


def test_a_rejected_dataset_has_a_cause_and_no_statistics() -> None:
    document = DatasetDocument(
        training_source={"kind": "File"}, training_rows=DatasetReport(rows=3), settings={}, refusal="why"
    ).to_json()
    assert (document["version"], document["refusal"]) == (VERSION, "why")
    assert document["digest"] is document["statistics"] is document["validationDataset"] is None
    assert document["warnings"] == document["proof"] == []
