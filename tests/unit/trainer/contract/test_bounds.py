from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.contract.bounds import shorten, within_contract
from finetune_trainer.contract.result import StageResult
from jsonschema import Draft202012Validator

from tests.support.repository import ROOT
from tests.support.results import PREPARE, TRAIN, full_success, warning

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
