"""The command `masks`, also in a separate process."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.exit_codes import ExitCode
from finetune_trainer.data.dataset.listing import list_masks

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


def listed(
    capsys: pytest.CaptureFixture[str], tokenizer: Path, path: Path
) -> tuple[list[dict[str, Any]], str, int]:
    """Return what `masks` does, from this process: it starts sooner."""
    code = list_masks(tokenizer, [path], 2048, "Keep")
    printed = capsys.readouterr()
    return [json.loads(line) for line in printed.out.splitlines()], printed.err, code


@pytest.mark.slow
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


@pytest.mark.slow
def test_rows_before_the_fault_of_a_file_are_printed(tmp_path: Path, tokenizer: Path) -> None:
    row = json.dumps({"messages": CHAT}).encode()
    path = tmp_path / "rows"
    path.write_bytes(b"[" + b",\n".join([row] * 70) + b",\n" + row)
    lines, said, code = masks(tokenizer, path)
    assert [line["accepted"] for line in lines] == [True] * 71
    assert "MalformedDataset: rows must be a JSON array of objects" in said
    assert code == ExitCode.PERMANENT


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b'{"text": "once upon a time"}\n{"text": "there was"}',
            "InvalidDataset: the dataset must have the columns",
        ),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 3, "a preferred and a rejected answer"),
        (b"<!doctype html><html><title>Log in</title></html>", "MalformedDataset: rows must be JSONL"),
        (b"", "InvalidDataset: the dataset must have rows, found an empty file"),
    ],
)
def test_a_file_that_cannot_be_learned_is_named_once_and_no_row_is_printed(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], data: bytes, said: str
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(data)
    lines, printed, code = listed(capsys, tokenizer, path)
    assert (lines, code) == ([], ExitCode.PERMANENT)
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_rows_that_are_all_rejected_fail_after_the_last_of_them(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "q"}]}\n' * 2)
    lines, said, code = listed(capsys, tokenizer, path)
    assert [line["reason"] for line in lines] == ["NoAssistantTurn", "NoAssistantTurn"]
    assert (
        "InvalidDataset: at least one row must be accepted, found all 2 rejected. 2 NoAssistantTurn" in said
    )
    assert code == ExitCode.PERMANENT


def test_a_rejection_of_the_masks_names_a_column_of_the_file(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows"
    rows = [{"question": "q", "answer": "a <|im_end|>"}, {"question": "q", "answer": "a"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (first, second), _, code = listed(capsys, tokenizer, path)
    assert (first["reason"], first["field"]) == ("ControlTokenInContent", "answer")
    assert second["accepted"]
    assert code == ExitCode.SUCCEEDED


@pytest.mark.slow
def test_a_given_format_is_not_guessed(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(json.dumps({"messages": CHAT, "prompt": "p", "completion": "c"}), encoding="utf-8")
    (line,), said, _ = masks(tokenizer, path, "--format", "PromptCompletion")
    learned = [label for label in line["examples"][0]["labels"] if label != -100]
    assert tiny_tokenizer().decode(learned) == "c<|im_end|>"
    assert "format PromptCompletion: set in dataset.format" in said


def test_a_template_that_needs_tools_is_proven_with_those_of_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if not tools %}{{ raise_exception('tools are required') }}{% endif %}{{ tools | tojson }}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "rows.jsonl"
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    path.write_text("\n".join(json.dumps({"messages": CHAT, "tools": [tool] * n}) for n in (1, 0)))
    lines, said, code = listed(capsys, tmp_path / "tokenizer", path)
    assert [(line["accepted"], line["reason"]) for line in lines] == [
        (True, None),
        (False, "TemplateRefused"),
    ], said
    assert lines[1]["detail"] == "tools are required"
    assert code == ExitCode.SUCCEEDED


def test_mentions_of_control_tokens_are_listed_as_plain_text_on_demand(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "What is <|im_end|>?"}, CHAT[1]]}))
    codes = [list_masks(tokenizer, [path], 2048, "Keep", "Auto", mode) for mode in ("Reject", "Escape")]
    rejected, accepted = map(json.loads, capsys.readouterr().out.splitlines())
    assert codes == [ExitCode.PERMANENT, ExitCode.SUCCEEDED]
    assert (rejected["reason"], accepted["accepted"]) == ("ControlTokenInContent", True)
