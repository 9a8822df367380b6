from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.dataset.counts import REMEDIES, DatasetReport, has_reasoning
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.telemetry.redaction import MASK, Redactor
from hypothesis import given
from hypothesis import strategies as st

from tests.support.repository import ROOT

COUNTS = [field.name for field in dataclasses.fields(DatasetReport) if field.type == "int"]
REJECTION = RowRejected(RowReason.EMPTY_ANSWER, "messages[1].content", "the answer has no text")


def rejected_content(content: Any, redact: Redactor | None = None) -> str:
    report = DatasetReport() if redact is None else DatasetReport(redact=redact)
    report.reject(7, REJECTION, content)
    found = report.examples[RowReason.EMPTY_ANSWER][0].content
    assert found is not None
    return found


def test_the_first_rejected_rows_of_each_reason_keep_their_content() -> None:
    report = DatasetReport()
    for row in range(1, 31):
        report.reject(row, REJECTION, {"messages": [row]})
    report.reject(31, RowRejected(RowReason.TOO_LONG, "messages", "900 tokens"))
    document = report.document()
    assert document["rejected"] == {"EmptyAnswer": 30, "TooLong": 1}
    assert [item["row"] for item in document["rejectedExamples"]["EmptyAnswer"]] == list(range(1, 21))
    assert document["rejectedExamples"]["EmptyAnswer"][0] == {
        "row": 1, "field": "messages[1].content", "found": "the answer has no text", "content": '{"messages": [1]}',
    }  # fmt: skip
    assert document["rejectedExamples"]["TooLong"][0]["content"] is None
    assert document["remedies"] == {reason.value: REMEDIES[reason] for reason in report.rejected}


def test_every_reason_has_a_remedy() -> None:
    assert REMEDIES.keys() == set(RowReason)


@pytest.mark.parametrize("reason", RowReason)
def test_remedies_agree_with_the_contract(reason: RowReason) -> None:
    remedy = json.loads((ROOT / "contract/reasons.json").read_text())["row"][reason.value]["remedy"]
    first, *_ = remedy.split(". ")
    assert REMEDIES[reason] == first[0].lower() + first[1:].removesuffix(".")


def test_content_is_short_and_shows_invisible_characters() -> None:
    content = rejected_content({"text": "a\u202eb\x00c\ud83d" + "x" * 10_000_000})
    assert content.startswith('{"text": "a\\u202eb\\u0000c\\ud83dxxx')
    assert len(content) == 200


def test_a_secret_in_a_row_is_removed_before_the_row_is_cut() -> None:
    """Otherwise the cut could leave a part of it that redaction does not recognize."""
    secret = "s3cr3t-" + "k" * 60
    content = rejected_content("y" * 180 + secret + " end", Redactor([secret]))
    assert content == "y" * 180 + MASK + " end"
    report = DatasetReport(redact=Redactor([secret]))
    report.reject(1, RowRejected(RowReason.INVALID_JSON, "line", f"near {secret}"))
    assert report.examples[RowReason.INVALID_JSON][0].detail == f"near {MASK}"


def test_kept_rows_are_counted() -> None:
    report = DatasetReport()
    report.keep([Example([1, 2, 3], [-100, 2, 3])], reasoning=True)
    report.keep([Example([1, 2], [-100, 2], dropped_turns=2), Example([1] * 9, [-100] * 8 + [1])])
    assert (report.kept, report.with_reasoning, report.shortened) == (2, 1, 1)
    assert (report.supervised_tokens, report.longest_example) == (4, 9)


@given(
    rejected=st.lists(st.tuples(st.sampled_from(RowReason), st.text(max_size=20)), max_size=40),
    counts=st.fixed_dictionaries(dict.fromkeys(COUNTS, st.integers(0, 10**9))),
)
def test_a_report_survives_json_unchanged(
    rejected: list[tuple[RowReason, str]], counts: dict[str, int]
) -> None:
    report = DatasetReport()
    for name, count in counts.items():
        setattr(report, name, count)
    for row, (reason, text) in enumerate(rejected):
        report.reject(row, RowRejected(reason, "place", text), text)
    assert len(COUNTS) == 10
    restored = DatasetReport.from_state(json.loads(json.dumps(report.to_state())))
    assert restored == report
    assert restored.document() == report.document()
    for half in (report, restored):
        half.reject(99, REJECTION, "more")
    assert restored == report


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "assistant", "content": "<think>\nso\n</think>\nyes"}, True),
        ({"role": "assistant", "content": "yes", "reasoning_content": "so"}, True),
        ({"role": "assistant", "content": "yes", "reasoning_content": " "}, False),
        ({"role": "assistant", "content": "yes"}, False),
        ({"role": "user", "content": "<think>so</think> yes"}, False),
    ],
)
def test_reasoning_is_a_trace_in_an_answer(message: dict[str, Any], expected: bool) -> None:  # noqa: FBT001 -- a case's outcome
    assert has_reasoning(Conversation([{"role": "user", "content": "q"}, message])) is expected


def test_too_many_rejected_rows_fail_with_rows_and_remedy() -> None:
    report = DatasetReport(rows=10, kept=8)
    for row in (3, 5):
        report.reject(row, REJECTION, {})
    report.require_acceptable(0.2, "dataset")
    with pytest.raises(StageError) as caught:
        report.require_acceptable(0.19, "dataset")
    assert caught.value.reason is Reason.INVALID_DATASET
    assert caught.value.message == (
        "at most 19.00% of the dataset's rows may be rejected, found 2 of 10. 2 EmptyAnswer in rows 3, 5. "
        f"Row 3, messages[1].content: the answer has no text. Remedy: {REMEDIES[RowReason.EMPTY_ANSWER]}."
    )


def test_a_failure_explains_three_reasons_and_counts_the_others() -> None:
    report = DatasetReport(rows=20)
    reasons = list(RowReason)[:5]
    for number, reason in enumerate(reasons):
        for row in range(5 - number):
            report.reject(10 * number + row, RowRejected(reason, "messages", "wrong"))
    with pytest.raises(StageError) as caught:
        report.require_acceptable(0, "dataset")
    message = caught.value.message
    assert f"5 {reasons[0]} in rows 0, 1, 2, ... Row 0," in message
    assert message.count("Remedy: ") == 3
    assert message.endswith(f" 2 {reasons[3]}, 1 {reasons[4]}.")


def test_a_dataset_of_rejected_rows_alone_fails_whatever_may_be_rejected() -> None:
    report = DatasetReport(rows=2)
    report.require_kept()
    report.reject(1, RowRejected(RowReason.INVALID_JSON, "line", "no JSON"))
    report.reject(2, REJECTION)
    with pytest.raises(StageError) as caught:
        report.require_kept()
    assert caught.value.reason is Reason.MALFORMED_DATASET
    said = "at least one row must be accepted, found all 2 rejected. 1 InvalidJson in row 1. Row 1, line: no JSON."
    assert said in caught.value.message
    report.kept = 1
    report.require_kept()
