from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_cli.trainer import trainer_is_installed
from finetune_cli.validate.rows import prove_rows
from finetune_operator.api.spec import FineTuneJobSpec

from tests.support.cli_jobs import cli_job
from tests.support.tiny_models import tiny_tokenizer

pytestmark = pytest.mark.slow  # each test starts a trainer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def conversation(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number} plus one?"},
            {"role": "assistant", "content": f"It is {number + 1}."},
        ]
    }


def spec() -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(cli_job()["spec"])


def test_only_the_first_rows_are_proven(tokenizer: Path, tmp_path: Path) -> None:
    assert trainer_is_installed()
    data = tmp_path / "rows.jsonl"
    rows = [conversation(number) for number in range(50)]
    rows[1] = {"messages": [{"role": "user", "content": "no answer"}]}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = prove_rows(data, tokenizer, spec(), 5)
    assert (found.rows, found.fault) == (5, None)
    assert [(row["row"], row["reason"]) for row in found.rejected] == [(2, "NoAssistantTurn")]
    assert found.format is not None
    assert found.format.startswith("Messages")


def test_a_file_that_is_broken_names_the_fault(tokenizer: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("not json\n", "utf-8")
    found = prove_rows(data, tokenizer, spec(), 5)
    assert found.rows == 0
    assert found.fault
