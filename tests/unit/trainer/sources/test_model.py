"""Model folders and the files that make up a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.model import (
    DirectoryModel,
    ignored_files,
    is_small_file,
    used_small_files,
    weight_files,
)

from tests.support.processes.open_folder import open_folder
from tests.support.processes.user import message_as_user

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"


def index(*files: str) -> bytes:
    return json.dumps({"weight_map": {f"tensor{n}": name for n, name in enumerate(files)}}).encode()


def found(names: list[str], content: bytes = b"") -> list[str]:
    return weight_files(names, lambda _name: content)


def test_an_index_names_the_weight_files_once_and_sorted() -> None:
    names = [CONFIG, INDEX, "b.safetensors", "a.safetensors"]
    assert found(names, index("b.safetensors", "a.safetensors", "b.safetensors")) == [
        "a.safetensors",
        "b.safetensors",
    ]


def test_one_file_without_an_index_is_the_whole_model() -> None:
    assert found([CONFIG, SINGLE, "extra.bin"]) == [SINGLE]


@pytest.mark.parametrize(
    ("names", "content", "reason", "message"),
    [
        ([], b"", Reason.INVALID_MODEL, "no files"),
        ([SINGLE], b"", Reason.INVALID_MODEL, "config.json"),
        ([CONFIG], b"", Reason.INVALID_MODEL, "found neither"),
        ([CONFIG, "model.bin"], b"", Reason.UNSUPPORTED_MODEL, "pickle"),
        ([CONFIG, "model.gguf"], b"", Reason.UNSUPPORTED_MODEL, "GGUF"),
        ([CONFIG, SINGLE, "adapter_model.safetensors"], b"", Reason.INVALID_MODEL, "found an adapter"),
        (["adapter_config.json", "adapter_model.bin"], b"", Reason.INVALID_MODEL, "found an adapter"),
        ([CONFIG, INDEX], b"[]", Reason.INVALID_MODEL, "weight_map"),
        ([CONFIG, INDEX], index("../a.safetensors"), Reason.INVALID_MODEL, "in its own folder"),
        ([CONFIG, INDEX], index("a.safetensors"), Reason.INVALID_MODEL, "missing: a.safetensors"),
    ],
)
def test_an_incomplete_model_has_its_reason(
    names: list[str], content: bytes, reason: Reason, message: str
) -> None:
    with pytest.raises(StageError, match=message) as caught:
        found(names, content)
    assert caught.value.reason is reason


def test_small_files_are_known_by_their_names() -> None:
    assert is_small_file("tokenizer.model")
    assert is_small_file("LICENSE.txt")
    assert not is_small_file(SINGLE)


def test_a_changed_weight_file_gives_another_identity(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / SINGLE).write_bytes(b"one")
    model = DirectoryModel(tmp_path)
    before = model.identity()
    assert before == model.identity()
    (tmp_path / SINGLE).write_bytes(b"two")
    assert DirectoryModel(tmp_path).identity()["samples"] != before["samples"]


def test_a_released_file_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / SINGLE).write_bytes(b"one")
    model = DirectoryModel(tmp_path)
    heard: list[tuple[int, int | None]] = []
    path = model.fetch(SINGLE, lambda done, total: heard.append((done, total)))
    model.release(SINGLE)
    assert path.read_bytes() == b"one"
    assert heard == [(3, 3)]


@pytest.mark.parametrize(("name", "text"), [("missing", "nothing"), ("file", "a file")])
def test_a_path_without_a_folder_is_not_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match=f"found {text}") as caught:
        DirectoryModel(tmp_path / name)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (index("a.safetensors"), [SINGLE]),
        (b"{", [SINGLE]),
        (index(SINGLE), [SINGLE]),
        (index("b.safetensors"), ["b.safetensors"]),
    ],
    ids=["missing-files", "damaged", "of-the-file-itself", "complete"],
)
def test_a_whole_file_counts_beside_an_index_of_missing_files(listed: bytes, expected: list[str]) -> None:
    assert found([CONFIG, INDEX, SINGLE, "b.safetensors"], listed) == expected


@pytest.mark.parametrize(
    ("name", "content", "used"),
    [
        (INDEX, index("a.safetensors"), False),
        (INDEX, b"{", False),
        (INDEX, index(SINGLE), True),
        ("adapter_config.json", b"{}", False),
        ("tokenizer.json", b"{}", True),
    ],
)
def test_a_stale_index_and_an_adapters_config_are_left_out(
    tmp_path: Path, name: str, content: bytes, *, used: bool
) -> None:
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / SINGLE).write_bytes(b"one")
    (tmp_path / name).write_bytes(content)
    model = DirectoryModel(tmp_path)
    assert model.weight_files() == [SINGLE]
    assert ({path.name for path in used_small_files(model)} == {CONFIG, name}) is used
    assert set(ignored_files(model)) == (set() if used else {name})


@pytest.mark.parametrize("name", [CONFIG, SINGLE, "."])
def test_a_file_that_the_pods_user_cannot_read_is_named(name: str) -> None:
    with open_folder() as folder:
        (folder / CONFIG).write_text("{}")
        (folder / SINGLE).write_bytes(b"one")
        assert message_as_user(lambda: DirectoryModel(folder)) == ""
        (folder / name).chmod(0)
        message = message_as_user(lambda: DirectoryModel(folder))
        assert message.startswith("the pod's user must be able to read the model")
        assert f"found no permission on {folder / name}" in message
