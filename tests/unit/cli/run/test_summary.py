from __future__ import annotations

import json

import pytest
from finetune_cli.run.summary import summarize

from tests.support.repository import ROOT

FIXTURES = ROOT / "contract" / "fixtures"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "prepare-reported",
            ["format    ShareGPT: column `conversations`", "warning   ValidationLeakage: 1 of 2"],
        ),
        ("prepare-completed", ["warning   1 of 20 rows were refused"]),
    ],
)
def test_formats_and_warnings_of_both_contract_versions_are_shown(name: str, lines: list[str]) -> None:
    text = summarize({"Prepare": json.loads((FIXTURES / f"result.{name}.json").read_text("utf-8"))})
    for line in lines:
        assert line in text


def test_a_destination_that_fails_after_the_training_is_followed_by_what_to_do() -> None:
    failed = {"outcome": "Failed", "reason": "DestinationUnwritable", "message": "found: No space left"}
    text = summarize({"Merge": failed})
    assert "Merge: Failed: DestinationUnwritable: found: No space left" in text
    assert "run the same command again" in text
    assert "run the same command again" not in summarize({"Prepare": failed})
