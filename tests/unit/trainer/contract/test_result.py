from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.exit_codes import ExitCode, exit_code
from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.model_config import MEMBERS
from finetune_trainer.contract.result import (
    MAXIMUM_BYTES,
    Outcome,
    as_contract,
    encode_result,
    result_document,
)
from finetune_trainer.contract.timestamps import rfc3339
from finetune_trainer.cpu import usable_processors
from finetune_trainer.data.rows.rejection import RowReason
from finetune_trainer.errors import Reason
from finetune_trainer.telemetry.redaction import MASK, Redactor
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.support.repository import ROOT

CONTRACT = ROOT / "contract"
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


def warning(message: str) -> dict[str, Any]:
    return {"code": "ValidationLeakage", "value": 0.123456789, "threshold": 0.05, "message": message}


def full_config() -> dict[str, Any]:
    """More members than the config of any one dense family has, each as long as a real one."""
    return {**dict.fromkeys(MEMBERS[:16], 1_000_000), "model_type": "recurrent_gemma"}


def full_success(character: str) -> dict[str, Any]:
    """The members of a PREPARE that found everything done, each text as long as the contract allows."""
    digest = "sha256:" + "0" * 64
    identity = {f"property{number}": character * 256 for number in range(16)}
    artifact = {"uri": character * 512, "digest": digest, "bytes": 2**40, "files": 2**20}
    numbers = ("rows", "kept", "duplicates", "trainingExamples", "validationExamples", "supervisedTokens")
    counts = dict.fromkeys((*numbers, "longestExample", "nearDuplicates", "leaked", "shortened"), 2**40)
    loss = 1.2345678901234567
    return {
        "prepare": {
            "dataset": {
                **counts,
                "digest": digest,
                "rejected": dict.fromkeys((reason.value for reason in RowReason), 10**6),
                "format": {"name": "PromptCompletion", "why": character * 256},
                "source": dict(identity),
                "validationSource": dict(identity),
                "languages": [{"code": "zh-Hant", "fraction": 0.333333}] * 3,
                "reasoningFraction": 0.333333,
                "promptVariety": 0.333333,
                "capacityRatio": 0.333333,
                "coverage": {"targets": 1000, "covered": 999},
                "warnings": [warning(character * 256) for _ in range(8)],
                "example": {"row": 1, "learned": character * 512},
            },
            "model": {
                "architecture": character * 128, "parameters": 2**40, "commit": "c" * 40, "digest": digest,
                "quantizedModules": 1000, "bytes": 2**40, "config": full_config(),
            },
        },
        "completed": {
            "train": {
                "device": character * 64, "steps": 10**6, "trainingLoss": loss, "tokensPerSecond": loss,
                "adapterDigest": digest,
                "memory": dict.fromkeys(
                    ("allocatedBytes", "reservedBytes", "deviceBytes", "usableBytes", "loadBytes"), 2**40
                ),
                "evaluation": {
                    "rows": 200, "baseLoss": loss, "tunedLoss": loss, "difference": -loss,
                    "interval": [-loss, loss], "verdict": "Improved",
                },
            },
            "merge": {
                "artifacts": [{"kind": "Adapter", **artifact}, {"kind": "Merged", **artifact}],
                "verification": {
                    "rows": 8, "tokens": 1000, "klDivergence": loss, "trainedLoss": loss, "mergedLoss": loss,
                    "prompt": character * 512, "answer": character * 512,
                },
            },
        },
    }  # fmt: skip


@pytest.mark.parametrize("character", ["a", "\u00e9", "\U0001f600", '"'])
def test_the_largest_success_fits_and_follows_the_contract(character: str) -> None:
    encoded = encode_result(document(Outcome(full_success(character)), []))
    assert len(encoded) <= MAXIMUM_BYTES
    result = json.loads(encoded)
    Draft202012Validator(SCHEMA).validate(result)
    assert result["prepare"]["dataset"]["rejected"].keys() == {reason.value for reason in RowReason}
    assert result["prepare"]["model"]["config"] == full_config()


def test_a_config_of_long_texts_gives_way_where_the_result_would_not_fit() -> None:
    """Sizing would refuse it, and progress has told it; a result that cannot be written would be a lost stage."""
    members = full_success("a")
    members["prepare"]["model"]["config"] = dict.fromkeys(MEMBERS, "x" * 64) | {
        "text_config": dict.fromkeys(MEMBERS, "x" * 64)
    }
    encoded = encode_result(document(Outcome(members), []))
    assert len(encoded) <= MAXIMUM_BYTES
    assert json.loads(encoded)["prepare"]["model"]["config"] is None


def test_an_ordinary_report_keeps_its_warnings_when_samples_are_long() -> None:
    """Eight warnings beside a long example are the common case; the example gives way first."""
    members = full_success("a")
    del members["completed"]
    dataset = members["prepare"]["dataset"]
    dataset["source"] = {"kind": "ObjectStore", "uri": "s3://bucket/rows.jsonl", "etag": "0" * 32}
    del dataset["validationSource"]
    dataset["rejected"] = dict.fromkeys([reason.value for reason in RowReason][:4], 1000)
    dataset["warnings"] = [warning("w" * 200) for _ in range(8)]
    result = json.loads(encode_result(document(Outcome(members), [])))
    found = result["prepare"]["dataset"]
    assert [item["code"] for item in found["warnings"]] == ["ValidationLeakage"] * 8
    assert found["warnings"][0]["message"] == "w" * 200
    assert found["example"]["learned"].endswith("...")
    assert found["source"] == dataset["source"]


def test_a_reader_of_the_first_version_gets_warnings_as_sentences() -> None:
    members = {"prepare": {"dataset": {"warnings": [warning("look here"), "an earlier run's"]}}}
    assert as_contract(members, "1.0")["prepare"]["dataset"]["warnings"] == ["look here", "an earlier run's"]
    assert as_contract(members, "1.1") == members
    assert as_contract(members, "1.10") == members
    assert as_contract({"train": {}}, "1.0") == {"train": {}}


def test_what_stages_return_is_brought_within_the_contracts_bounds() -> None:
    members = full_success("a")
    dataset = members["prepare"]["dataset"]
    dataset["source"] = {
        "kind": "HuggingFace",
        "files": ["a"] * 300,
        "etag": None,
        "uri": "u" * 300,
        "bytes": 5,
    }
    dataset["format"]["why"] = "w" * 300
    dataset["example"]["learned"] = "l" * 600
    dataset["warnings"] = [warning("m" * 300)] * 9
    found = as_contract(members, "1.1")
    assert found["prepare"]["dataset"]["source"] == {
        "kind": "HuggingFace", "files": 300, "uri": "u" * 253 + "...", "bytes": 5
    }  # fmt: skip
    assert len(dataset["warnings"]) == 9, "the argument is left alone"
    result = json.loads(encode_result(document(Outcome(found), []), 10**6))
    Draft202012Validator(SCHEMA).validate(result)


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
