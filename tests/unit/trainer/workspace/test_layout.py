from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.workspace.layout import (
    WorkspaceLayout,
    digest_of,
    read_marker,
    write_json_atomically,
    write_marker,
    write_text_atomically,
)


def test_a_marker_is_valid_for_equal_inputs_only(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    write_marker(layout, "train", "sha256:a", {"steps": 2})
    assert read_marker(layout, "train", "sha256:a") == {"steps": 2}
    assert read_marker(layout, "train", "sha256:b") is None
    assert read_marker(layout, "merge", "sha256:a") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"inputs": "sha256:a"}', '{"inputs": "sha256:a", "result": 1}']
)
def test_a_damaged_marker_is_invalid(tmp_path: Path, text: str) -> None:
    layout = WorkspaceLayout(tmp_path)
    layout.marker("train").parent.mkdir()
    layout.marker("train").write_text(text)
    assert read_marker(layout, "train", "sha256:a") is None


def test_writing_creates_folders_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_json_atomically(path, {"b": "\u00e9", "a": 1})
    write_json_atomically(path, {"b": 2, "a": 1})
    assert path.read_text() == '{"a": 1, "b": 2}'
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "\ud800")
    assert path.read_text() == "old"


def test_the_digest_of_a_document_does_not_depend_on_the_order_of_its_members() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of(json.loads('{"b": [1, 2], "a": 1}'))
    assert digest_of({"b": [1, 2]}) != digest_of({"b": [2, 1]})
    assert digest_of([]) == "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_logs_are_named_by_stage_and_attempt(tmp_path: Path) -> None:
    assert WorkspaceLayout(tmp_path).log("Train", 3) == tmp_path / "logs" / "train-3.log"
