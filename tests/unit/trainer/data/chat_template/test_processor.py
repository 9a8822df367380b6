"""A processor's chat template becomes the one of the training where servers use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.data.chat_template.processor import place_processor_template, processor_template

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "value",
    [
        "P",
        {"default": "P", "other": "Q"},
        [{"name": "other", "template": "Q"}, {"name": "default", "template": "P"}],
    ],
)
@pytest.mark.parametrize("name", ["chat_template", "processor_config"])
def test_the_template_is_in_one_of_a_processors_files(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, **{name: {"chat_template": value}})
    assert processor_template(tmp_path) == "P"


@pytest.mark.parametrize("value", [None, "", 7, [], [{"name": "other", "template": "Q"}]])
def test_other_values_are_no_template(tmp_path: Path, value: Any) -> None:
    write(tmp_path, processor_config={"chat_template": value})
    assert processor_template(tmp_path) is None
    assert not place_processor_template(tmp_path, first=True)


@pytest.mark.parametrize(
    ("tokenizer", "first", "placed"),
    [("T", True, True), ("T", False, False), (None, True, True), (None, False, True)],
)
def test_it_comes_before_the_tokenizers_for_a_model_with_other_senses(
    tmp_path: Path,
    tokenizer: str | None,
    first: bool,  # noqa: FBT001 -- a case
    placed: bool,  # noqa: FBT001 -- a case
) -> None:
    write(tmp_path, chat_template={"chat_template": "P"}, tokenizer_config={"chat_template": tokenizer})
    assert place_processor_template(tmp_path, first=first) is placed
    path = tmp_path / "chat_template.jinja"
    assert (path.read_text() if path.is_file() else None) == ("P" if placed else None)


def test_a_template_of_both_stays(tmp_path: Path) -> None:
    write(tmp_path, chat_template={"chat_template": "P"})
    (tmp_path / "chat_template.jinja").write_text("J")
    assert not place_processor_template(tmp_path, first=True)
    assert (tmp_path / "chat_template.jinja").read_text() == "J"
