from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from finetune_trainer.workspace import digests
from finetune_trainer.workspace.digests import (
    digest_of_files,
    file_digest,
    folder_digests,
    parts_digest,
    sampled_digest,
)


def test_files_of_a_folder_have_the_digests_of_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "folder").mkdir()
    found = folder_digests(tmp_path)
    assert list(found) == ["a", "b"]
    assert found["a"] == file_digest(tmp_path / "a") == "sha256:" + hashlib.sha256(b"one").hexdigest()


def test_names_count_in_the_digest_of_several_files_and_order_does_not() -> None:
    assert digest_of_files({"a": "1", "b": "2"}) == digest_of_files({"b": "2", "a": "1"})
    assert digest_of_files({"a": "1", "b": "2"}) != digest_of_files({"a": "2", "b": "1"})


@pytest.mark.parametrize("size", [0, 1, 4096, 8192, 10_001])
def test_parts_depend_on_every_byte_and_not_on_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(digests, "_PART_BYTES", 8192)
    monkeypatch.setattr(digests, "_READ_BYTES", 4096)
    path = tmp_path / "file"
    content = bytes(number % 251 for number in range(size))
    path.write_bytes(content)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(3) as three:
        found = parts_digest(path, one)
        assert parts_digest(path, three) == found
        for position in {0, size // 2, size - 1} if size else set():
            changed = bytearray(content)
            changed[position] ^= 1
            path.write_bytes(changed)
            assert parts_digest(path, one) != found
        path.write_bytes(content + b"\0")
        assert parts_digest(path, one) != found


def test_samples_cover_the_first_and_the_last_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytearray(1 << 20)
    path.write_bytes(content)
    found = sampled_digest(path)
    for position in (0, len(content) - 1):
        changed = bytearray(content)
        changed[position] = 1
        path.write_bytes(changed)
        assert sampled_digest(path) != found
    path.write_bytes(content)
    assert sampled_digest(path) == found
