"""Target prompts: every form of the file, and every error in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.report.targets import read_target_prompts

if TYPE_CHECKING:
    from pathlib import Path


WANTED = ["reset my password", "where is my order?"]
FORMS = {
    "text": "reset my password\n\n  where is my order?  \n",
    "text with a byte order mark": "\ufeffreset my password\r\nwhere is my order?",
    "text of JSON strings": '"reset my password"\n"where is my order?"\n',
    "JSON list of texts": json.dumps(WANTED),
    "JSON list of objects": json.dumps([{"prompt": text} for text in WANTED], indent=2),
    "JSON lines": "\n".join(json.dumps({"text": text}) for text in WANTED),
    "JSON lines of conversations": "\n".join(
        json.dumps({"messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "first"},
            {"role": "assistant", "content": "a"}, {"role": "user", "content": text},
        ]})
        for text in WANTED
    ),
    "ShareGPT": "\n".join(json.dumps({"conversations": [{"from": "human", "value": text}]}) for text in WANTED),
    "parts": json.dumps([{"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]} for text in WANTED]),
    "prompt as messages": json.dumps([{"prompt": [{"role": "user", "content": text}]} for text in WANTED]),
    "mixed list": json.dumps([WANTED[0], {"instruction": WANTED[1]}]),
}  # fmt: skip
FAULTS = {
    b"": "found 0 without",
    b"\n \n": "found 0 without",
    b"[]": "found 0 without",
    b"caf\xe9": "position 3",
    b'["a", 5]': "item 2: int",
    b'[{"answer": "a"}]': "item 1: an object with ['answer']",
    b'{"prompt": "a"}\nplain': "line 2",
    b'{"messages": [{"role": "assistant", "content": "a"}]}': "item 1",
    b'["half \\ud83d"]': "item 1: half of a surrogate pair",
    b'{"prompt": ' + b"[" * 100_000: "line 1",
    b"a\n" * 10_001: "found 10001 without",
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_the_file_gives_the_prompts_in_order(form: str, tmp_path: Path) -> None:
    assert read_target_prompts(write(tmp_path / "prompts", FORMS[form].encode())) == WANTED


def test_text_that_only_looks_like_json_is_text(tmp_path: Path) -> None:
    text = '[INST] what is this\n"quoted" words\n'
    assert read_target_prompts(write(tmp_path / "p", text.encode())) == text.splitlines()


@pytest.mark.parametrize("content", list(FAULTS))
def test_a_bad_file_is_rejected_with_its_position(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        read_target_prompts(write(tmp_path / "p", content))
    assert caught.value.reason is Reason.INVALID_DATASET
    assert caught.value.message.startswith("dataset.targetPrompts must hold ")
    assert FAULTS[content] in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_path_without_a_file_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        read_target_prompts(tmp_path / name)
    assert caught.value.reason is Reason.INVALID_DATASET
