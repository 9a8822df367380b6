from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.contract.bounds import (
    MAXIMUM_FAILED_RUNGS,
    readable_reason,
    shorten,
    within_contract,
)
from finetune_trainer.contract.result import CompletedResult, StageResult
from finetune_trainer.contract.train_result import FailedRungResult
from finetune_trainer.errors import Reason
from jsonschema import Draft202012Validator

from tests.support.repository import ROOT
from tests.support.results import MERGE, PREPARE, TRAIN, full_success, warning

SCHEMA = json.loads((ROOT / "contract" / "result.schema.json").read_text())


def with_warnings(*warnings: Any) -> StageResult:
    document = PREPARE.document()
    document["dataset"]["warnings"] = list(warnings)
    return StageResult.model_validate({"prepare": document})


@pytest.mark.parametrize("version", ["1.1", "1.10"])
def test_a_later_reader_gets_unchanged_warnings(version: str) -> None:
    result = with_warnings(warning("look here"), "an earlier run's")
    assert within_contract(result, version) == result


def test_a_reader_of_the_first_version_gets_warnings_as_sentences() -> None:
    found = within_contract(with_warnings(warning("look here"), "an earlier run's"), "1.0")
    assert found.prepare is not None
    assert found.prepare.dataset.warnings == ("look here", "an earlier run's")


@pytest.mark.parametrize(
    ("version", "reason"),
    [("1.9", "UnsupportedModel"), ("1.10", "UnsupportedModel"), ("1.11", "ModelSizeUnknown")],
)
def test_a_model_without_a_size_has_a_reason_that_the_reader_takes(version: str, reason: str) -> None:
    assert readable_reason(Reason.MODEL_SIZE_UNKNOWN, version) == reason
    assert readable_reason(Reason.INVALID_MODEL, version) is Reason.INVALID_MODEL


def test_results_of_other_stages_do_not_change() -> None:
    result = StageResult(train=TRAIN)
    assert within_contract(result, "1.0") == result


def test_texts_lists_and_sources_of_a_stage_are_cut_to_the_bounds() -> None:
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
    dataset["endTokens"] = [{"id": 2, "text": "t" * 300}] * 9
    given = StageResult.model_validate(members)
    found = within_contract(given, "1.1")
    assert found.prepare is not None
    assert found.prepare.dataset.source == {
        "kind": "HuggingFace", "files": 300, "uri": "u" * 253 + "...", "bytes": 5
    }  # fmt: skip
    assert given.prepare is not None
    assert len(given.prepare.dataset.warnings) == 9, "the argument is left alone"
    Draft202012Validator({**SCHEMA["$defs"]["prepare"], "$defs": SCHEMA["$defs"]}).validate(
        found.document()["prepare"]
    )


@pytest.mark.parametrize(("text", "expected"), [("12345", "12345"), ("123456", "12...")])
def test_only_a_text_that_is_too_long_is_cut_and_the_cut_is_marked(text: str, expected: str) -> None:
    assert shorten(text, 5) == expected


def test_the_name_of_a_tensor_and_warnings_of_a_proof_are_cut_to_the_bounds() -> None:
    members = full_success("a")
    for merge in (members["completed"]["merge"], full_success("a")["completed"]["merge"]):
        merge["verification"]["weakestTensor"] = "t" * 300
        merge["verification"]["warnings"] = [warning("m" * 300)] * 5
        members["merge"] = merge
    found = within_contract(StageResult.model_validate(members), "1.4").document()
    for part in (found["merge"], found["completed"]["merge"]):
        assert part["verification"]["weakestTensor"] == "t" * 125 + "..."
        assert [len(item["message"]) for item in part["verification"]["warnings"]] == [256] * 4
    Draft202012Validator({**SCHEMA["$defs"]["merge"], "$defs": SCHEMA["$defs"]}).validate(found["merge"])


def test_a_merge_without_a_proof_does_not_change() -> None:
    result = StageResult(merge=MERGE)
    assert within_contract(result, "1.4") == result
    alone = StageResult(merge=MERGE.model_copy(update={"verification": None}))
    assert within_contract(alone, "1.4") == alone


def test_only_the_last_failed_rungs_of_a_training_are_sent() -> None:
    rungs = tuple(
        FailedRungResult(micro_batch_size=size, gradient_checkpointing=True, activity="Training")
        for size in range(40, 0, -1)
    )
    train = TRAIN.model_copy(update={"failed_rungs": rungs})
    for result in (StageResult(train=train), StageResult(completed=CompletedResult(train=train))):
        found = within_contract(result, "1.5")
        part = found.train or (found.completed and found.completed.train)
        assert part
        assert part.failed_rungs == rungs[-MAXIMUM_FAILED_RUNGS:]
