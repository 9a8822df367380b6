from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.contract.bounds import MAXIMUM_LOG_LINE, MAXIMUM_LOG_LINES, MAXIMUM_MESSAGE, shorten
from finetune_trainer.contract.model_config import MEMBERS
from finetune_trainer.contract.termination_message import MAXIMUM_BYTES, encode_result
from finetune_trainer.data.rows.rejection import RowReason
from finetune_trainer.errors import Reason
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.support.memory_traces import memory_trace
from tests.support.repository import ROOT
from tests.support.results import fixture, full_config, full_success, warning

SCHEMA = json.loads((ROOT / "contract" / "result.schema.json").read_text())
_TEXT = st.text(st.characters(codec="utf-8"), max_size=3000)
_HEAD = ("version", "uid", "stage", "attempt", "startTime", "completionTime")


def success(members: dict[str, Any]) -> dict[str, Any]:
    whole = fixture("prepare-succeeded")
    return {**{name: whole[name] for name in _HEAD}, "outcome": "Succeeded", "peakMemoryBytes": 1, **members}


def failure(reason: Reason, message: str, log_tail: list[str]) -> dict[str, Any]:
    lines = [shorten(line, MAXIMUM_LOG_LINE) for line in log_tail[-MAXIMUM_LOG_LINES:]]
    text = shorten(message, MAXIMUM_MESSAGE)
    return {**success({}), "outcome": "Failed", "reason": reason.value, "message": text, "logTail": lines}


@given(_TEXT, st.lists(_TEXT, max_size=30))
def test_a_failure_with_any_text_fits_and_follows_the_contract(message: str, log_tail: list[str]) -> None:
    encoded = encode_result(failure(Reason.INTERNAL_ERROR, message, log_tail))
    assert len(encoded) <= MAXIMUM_BYTES
    result = json.loads(encoded)
    Draft202012Validator(SCHEMA).validate(result)
    assert (result["outcome"], result["reason"]) == ("Failed", "InternalError")


def test_the_log_is_cut_before_the_message() -> None:
    result = json.loads(encode_result(failure(Reason.INVALID_DATASET, "m" * 1000, ["l" * 256] * 20)))
    assert result["message"] == "m" * 1000
    assert 0 < len(result["logTail"]) < 20


def test_long_texts_of_a_success_are_shortened_and_numbers_kept() -> None:
    dataset = {"rows": 5, "warnings": ["w" * 256] * 8, "example": {"row": 1, "learned": "\u00e9" * 3000}}
    encoded = encode_result(success({"prepare": {"dataset": dataset}}))
    assert len(encoded) <= MAXIMUM_BYTES
    result = json.loads(encoded)
    assert result["prepare"]["dataset"]["rows"] == 5
    assert "logTail" not in result


@pytest.mark.parametrize("character", ["a", "\u00e9", "\U0001f600", '"'])
def test_the_largest_success_fits_and_follows_the_contract(character: str) -> None:
    encoded = encode_result(success(full_success(character)))
    assert len(encoded) <= MAXIMUM_BYTES
    result = json.loads(encoded)
    Draft202012Validator(SCHEMA).validate(result)
    assert result["prepare"]["dataset"]["rejected"].keys() == {reason.value for reason in RowReason}
    assert result["prepare"]["model"]["config"] == full_config()


def test_the_trace_of_an_ordinary_job_is_whole() -> None:
    members = {"prepare": fixture("prepare-sized")["prepare"]}
    trace = memory_trace(20.5)
    trace["rungs"] = [[*row[:2], weights, *row[3:]] for weights in (0, 1) for row in trace["rungs"]]
    members["prepare"]["model"] |= {"trace": trace, "config": full_config()}
    result = json.loads(encode_result(success(members)))
    Draft202012Validator(SCHEMA).validate(result)
    assert result["prepare"]["model"]["trace"] == trace


def test_a_long_trace_loses_its_last_ways_and_goes_before_the_config() -> None:
    members = full_success("a")
    rung = [1 << 20, 1, 1, *[1 << 40] * 5]
    members["prepare"]["model"]["trace"] = memory_trace(20.5, rungs=[rung] * 48)
    result = json.loads(encode_result(success(members)))
    assert result["prepare"]["model"]["config"] == full_config()
    assert "trace" not in result["prepare"]["model"]
    del members["completed"]
    members["prepare"]["dataset"]["warnings"] = []
    kept = json.loads(encode_result(success(members)))["prepare"]["model"]["trace"]
    assert 8 <= len(kept["rungs"]) < 48


def test_a_config_of_long_texts_is_dropped_if_the_result_would_not_fit() -> None:
    """Sizing would reject this config, and progress has already shown it. Without a result the stage would be lost."""
    members = full_success("a")
    members["prepare"]["model"]["config"] = dict.fromkeys(MEMBERS, "x" * 64) | {
        "text_config": dict.fromkeys(MEMBERS, "x" * 64)
    }
    encoded = encode_result(success(members))
    assert len(encoded) <= MAXIMUM_BYTES
    assert json.loads(encoded)["prepare"]["model"]["config"] is None


def test_an_ordinary_report_keeps_its_warnings_when_samples_are_long() -> None:
    """Eight warnings and a long example are the common case. The example is cut first."""
    members = full_success("a")
    del members["completed"]
    dataset = members["prepare"]["dataset"]
    dataset["source"] = {"kind": "ObjectStore", "uri": "s3://bucket/rows.jsonl", "etag": "0" * 32}
    del dataset["validationSource"]
    dataset["rejected"] = dict.fromkeys([reason.value for reason in RowReason][:4], 1000)
    dataset["warnings"] = [warning("w" * 200) for _ in range(8)]
    dataset["endTokens"] = [{"id": 128_009, "text": "<|eot_id|>"}] * 2
    result = json.loads(encode_result(success(members)))
    found = result["prepare"]["dataset"]
    assert [item["code"] for item in found["warnings"]] == ["ValidationLeakage"] * 8
    assert found["warnings"][0]["message"] == "w" * 200
    assert found["example"]["learned"].endswith("...")
    assert found["source"] == dataset["source"]
    assert found["endTokens"] == dataset["endTokens"][:1]


def test_the_proof_of_a_merge_with_long_texts_keeps_its_numbers_and_warnings() -> None:
    """An emoji takes four bytes. The prompt and the answer are cut first."""
    members = {"merge": full_success("\U0001f600")["completed"]["merge"]}
    for artifact in members["merge"]["artifacts"]:
        artifact["uri"] = "pvc://team/models/demo/" + artifact["kind"]
    proof = members["merge"]["verification"]
    proof |= {"weakestTensor": "model.layers.0.self_attn.q_proj.weight"}
    proof["warnings"] = [warning("w" * 200) for _ in range(4)]
    found = json.loads(encode_result(success(members)))["merge"]
    assert found["artifacts"] == members["merge"]["artifacts"]
    assert found["verification"]["warnings"][3]["message"] == "w" * 200
    assert found["verification"]["slope"] == 1.23457, "the digits that the status shows"
    assert found["verification"]["weakestTensor"] == proof["weakestTensor"]
    assert found["verification"]["answer"].endswith("...")


def test_changed_versions_outlive_the_versions_that_the_manifest_has() -> None:
    train = {"versions": dict.fromkeys("abc", "v" * 64), "versionChanges": [{"name": "torch"}]}
    log = {"logTail": ["l" * 256] * 20}
    assert json.loads(encode_result(success({"train": train} | log)))["train"] == train
    long = {"prepare": {"dataset": {"warnings": [warning("w" * 256) for _ in range(14)]}}}
    found = json.loads(encode_result(success({"train": train} | long)))["train"]
    assert found == {"versionChanges": [{"name": "torch"}]}


def test_a_number_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_result(success({"train": {"trainingLoss": float("nan")}}))


def test_the_oldest_failed_rungs_are_dropped_before_the_numbers_of_a_training() -> None:
    rung = {"microBatchSize": 1024, "gradientCheckpointing": False}
    failed = [{**rung, "activity": "x" * 64, "step": step, "allocatedBytes": 2**40} for step in range(1, 18)]
    whole = fixture("train-laddered")["train"]
    train = {**whole, "failedRungs": failed, "adapterDigest": "sha256:" + "0" * 64}
    for part in ({"train": train}, {"completed": {"train": train}, "reason": "x" * 1000}):
        encoded = encode_result(success({**part, "prepare": {"model": {"architecture": "y" * 900}}}))
        assert len(encoded) <= MAXIMUM_BYTES
        found = json.loads(encoded)
        kept = (found.get("train") or found["completed"]["train"])["failedRungs"]
        assert 0 < len(kept) < 17
        assert kept == failed[-len(kept) :]


def test_a_training_tells_how_it_computed_however_long_its_own_result_is() -> None:
    """In the result of a PREPARE that found everything done, other numbers are needed more."""
    trained = full_success("a")["completed"]["train"]
    own = json.loads(encode_result(success({"train": trained})))["train"]
    assert own["attention"]["backend"] == "RowByRow"
    assert own["kernels"]["used"] == ["RmsNorm", "Rope", "SwiGlu"]
    assert "attention" not in json.loads(encode_result(success(full_success("a"))))["completed"]["train"]
