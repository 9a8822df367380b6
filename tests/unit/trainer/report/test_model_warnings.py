from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from finetune_trainer.report.model_warnings import MODEL_POLICIES, ModelFacts, model_warnings

from tests.support.repository import ROOT

GOOD = ModelFacts(
    maximum_length=2048,
    longest_example=700,
    context=2048,
    largest_token=99,
    token_text="<|last|>",
    embedding_rows=100,
)
CROSSING: dict[str, tuple[dict[str, Any], float, float, str]] = {
    "BeyondContext": ({"context": 1024}, 2048, 1024, "the longest row has 700"),
    "TokensWithoutEmbedding": ({"largest_token": 100}, 100, 99, "<|last|>"),
    "FilesIgnored": ({"ignored_files": {"adapter_config.json": "it is stale"}}, 1, 0, "adapter_config.json"),
}


def test_a_model_that_agrees_with_the_run_has_no_warning() -> None:
    assert model_warnings(GOOD) == []
    assert model_warnings(replace(GOOD, context=None)) == []


@pytest.mark.parametrize("code", MODEL_POLICIES)
def test_each_warning_has_its_values_and_says_what_was_found(code: str) -> None:
    changes, value, threshold, text = CROSSING[code]
    (warning,) = model_warnings(replace(GOOD, **changes))
    assert (warning.code, warning.value, warning.threshold) == (code, value, threshold)
    assert text in warning.message
    assert len(warning.message) <= 256


def test_every_code_is_documented() -> None:
    document = (ROOT / "docs" / "dataset-report.md").read_text(encoding="utf-8")
    assert set(MODEL_POLICIES) <= set(re.findall(r"^### (\w+)$", document, re.MULTILINE))
