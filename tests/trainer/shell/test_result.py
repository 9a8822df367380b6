from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.clock import rfc3339
from finetune_trainer.data.rows import RowReason
from finetune_trainer.errors import Reason
from finetune_trainer.exitcodes import ExitCode, exit_code
from finetune_trainer.processors import usable_processors
from finetune_trainer.redaction import MASK, Redactor
from finetune_trainer.result import MAXIMUM_BYTES, Outcome, encode_result, result_document
from finetune_trainer.telemetry import Identity
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

CONTRACT = Path(__file__).parents[3] / "contract"
SCHEMA = json.loads((CONTRACT / "result.schema.json").read_text())
NOW = datetime(2026, 1, 31, 10, 0, 0, 123_456, tzinfo=UTC)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=3000)


def document(outcome: Outcome, log_tail: list[str]) -> dict[str, Any]:
    return result_document(
        Identity("uid", "Prepare", 0),
        outcome,
        started=NOW,
        completed=NOW,
        peak_memory_bytes=1,
        log_tail=log_tail,
    )


def test_every_reason_of_the_trainer_has_the_exit_code_of_its_class() -> None:
    listed = json.loads((CONTRACT / "reasons.json").read_text())["job"]
    trainer = {name: entry["class"] for name, entry in listed.items() if entry["source"] == "trainer"}
    assert trainer.keys() == {reason.value for reason in Reason}
    codes = {
        "Permanent": ExitCode.PERMANENT,
        "Retryable": ExitCode.RETRYABLE,
        "Interrupted": ExitCode.INTERRUPTED,
    }
    for name, group in trainer.items():
        assert exit_code(Reason(name)) is codes[group], name
    assert exit_code(None) is ExitCode.SUCCEEDED


def test_every_row_reason_is_in_the_contract() -> None:
    listed = json.loads((CONTRACT / "reasons.json").read_text())["row"]
    assert listed.keys() == {reason.value for reason in RowReason}


@given(_TEXT, st.lists(_TEXT, max_size=30))
def test_a_failure_fits_whatever_it_says_and_follows_the_contract(message: str, log_tail: list[str]) -> None:
    encoded = encode_result(document(Outcome({}, Reason.INTERNAL_ERROR, message), log_tail))
    assert len(encoded) <= MAXIMUM_BYTES
    result = json.loads(encoded)
    Draft202012Validator(SCHEMA).validate(result)
    assert (result["outcome"], result["reason"]) == ("Failed", "InternalError")


def test_the_log_goes_before_the_message() -> None:
    result = json.loads(
        encode_result(document(Outcome({}, Reason.INVALID_DATASET, "m" * 1000), ["l" * 256] * 20))
    )
    assert result["message"] == "m" * 1000
    assert 0 < len(result["logTail"]) < 20


def test_long_texts_of_a_success_are_shortened_and_numbers_kept() -> None:
    dataset = {"rows": 5, "warnings": ["w" * 256] * 8, "example": {"row": 1, "learned": "\u00e9" * 3000}}
    encoded = encode_result(document(Outcome({"prepare": {"dataset": dataset}}), ["never shown"]))
    assert len(encoded) <= MAXIMUM_BYTES
    result = json.loads(encoded)
    assert result["prepare"]["dataset"]["rows"] == 5
    assert "logTail" not in result


def test_a_number_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_result(document(Outcome({"train": {"trainingLoss": float("nan")}}), []))


def test_times_are_written_in_utc_with_milliseconds() -> None:
    assert rfc3339(NOW) == "2026-01-31T10:00:00.123Z"


def test_no_part_of_a_secret_url_survives() -> None:
    url = "https://user:pass-word@bucket.example.com/data/rows.jsonl?X-Amz-Signature=abc%2Fdef123&Expires=1700000000"
    redact = Redactor([url, "hf_secret_token"])
    for text in (
        f"GET {url} failed",
        "path /data/rows.jsonl?X-Amz-Signature=abc%2Fdef123&Expires=1700000000",
        "signature abc/def123 or abc%2Fdef123",
        "token hf_secret_token",
        "redirected to https://other.example.com/x?sig=unknownvalue and https://me:secret2@host/",
    ):
        redacted = redact(text)
        assert MASK in redacted
        for part in ("abc%2F", "abc/def", "1700000000", "pass-word", "hf_secret", "unknownvalue", "secret2"):
            assert part not in redacted
    assert Redactor([])("nothing to hide") == "nothing to hide"


@pytest.mark.parametrize(
    ("limit", "most"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 10_000), ("nonsense", 10_000)],
)
def test_threads_keep_to_the_cgroup_limit(tmp_path: Path, limit: str, most: int) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(limit)
    assert 1 <= usable_processors(path) <= most
