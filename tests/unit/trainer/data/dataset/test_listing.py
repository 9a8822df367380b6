"""The command `masks` in a separate process."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.exit_codes import ExitCode

from tests.support.repository import ROOT
from tests.support.tiny_models import tiny_tokenizer

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def masks(tokenizer: Path, *arguments: str | Path) -> tuple[list[dict[str, Any]], str, int]:
    """Return the printed lines, standard error and the exit code."""
    command: list[str | Path] = [sys.executable, "-m", "finetune_trainer", "masks"]
    command += ["--tokenizer", tokenizer, "--dataset"]
    done = subprocess.run(
        [*command, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "trainer_image" / "src"), "OMP_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr, done.returncode


def test_every_row_is_printed_in_order_and_the_format_is_logged(tmp_path: Path, tokenizer: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b'{"instruction": "q", "output": "a"}\nnot JSON\n{"instruction": "q", "output": ""}')
    second.write_bytes(gzip.compress(b'[5, {"instruction": "q"}]'))
    lines, said, code = masks(tokenizer, first, second)
    assert [(line["row"], line["accepted"], line["reason"]) for line in lines] == [
        (1, True, None),
        (2, False, "InvalidJson"),
        (3, True, None),
        (4, False, "NotAnObject"),
        (5, False, "InvalidMessages"),
    ]
    (example,) = lines[0]["examples"]
    assert len(example["input_ids"]) == len(example["labels"])
    assert "format Alpaca: columns `instruction` and `output` in 2 of the first 5 rows" in said
    assert code == ExitCode.SUCCEEDED


def test_rows_before_the_fault_of_a_file_are_printed(tmp_path: Path, tokenizer: Path) -> None:
    row = json.dumps({"messages": CHAT}).encode()
    path = tmp_path / "rows"
    path.write_bytes(b"[" + b",\n".join([row] * 70) + b",\n" + row)
    lines, said, code = masks(tokenizer, path)
    assert [line["accepted"] for line in lines] == [True] * 71
    assert "MalformedDataset: rows must be a JSON array of objects" in said
    assert code == ExitCode.PERMANENT


def test_rows_of_an_unknown_format_are_printed_as_rejected(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"text": "once upon a time"}\n{"text": "there was"}')
    lines, said, code = masks(tokenizer, path)
    assert [line["reason"] for line in lines] == ["InvalidMessages", "InvalidMessages"]
    assert "InvalidDataset: the dataset must have the columns" in said
    assert code == ExitCode.PERMANENT


def test_a_given_format_is_not_guessed(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(json.dumps({"messages": CHAT, "prompt": "p", "completion": "c"}), encoding="utf-8")
    (line,), said, _ = masks(tokenizer, path, "--format", "PromptCompletion")
    learned = [label for label in line["examples"][0]["labels"] if label != -100]
    assert tiny_tokenizer().decode(learned) == "c<|im_end|>"
    assert "format PromptCompletion: as asked for" in said
