"""Damaged files and files in other formats give a reason and never a crash."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import read_header

if TYPE_CHECKING:
    from pathlib import Path

SINGLE = "model.safetensors"


def header_file(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> str:
    return json.dumps(
        {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}
    )


FILES: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "header"),
    ("a few bytes", b"1234567", "header"),
    ("cut in the header", header_file("{}", length=100), "header"),
    ("text", b"<html>not a model</html>" * 10, "header"),
    ("no JSON", header_file("{'a': 1}"), "no JSON"),
    ("deep JSON", header_file("[" * 100_000), "no JSON"),
    ("no object", header_file("[1]"), "no JSON object"),
    ("no UTF-8", header_file(b'{"\xff": 1}'), "no JSON"),
    ("no members", header_file('{"a": 3}'), "tensor a"),
    (
        "negative offset",
        header_file('{"a": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}'),
        "tensor a",
    ),
    (
        "true as a size",
        header_file('{"a": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}', b"1"),
        "tensor a",
    ),
    (
        "one offset",
        header_file('{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}', b"1"),
        "tensor a",
    ),
    ("unknown type", header_file(f'{{"a": {entry(0, 1, dtype="F4")}}}', b"1"), "'F4'"),
    ("shape and bytes", header_file(f'{{"a": {entry(0, 4, [5])}}}', b"1234"), "tensor a"),
    ("a name twice", header_file(f'{{"a": {entry(0, 1)}, "a": {entry(1, 2)}}}', b"12"), "'a' twice"),
    ("overlap", header_file(f'{{"a": {entry(0, 4)}, "b": {entry(2, 6)}}}', b"123456"), "overlaps"),
    ("gap", header_file(f'{{"a": {entry(0, 1)}, "b": {entry(2, 3)}}}', b"123"), "gap"),
    ("cut in the data", header_file(f'{{"a": {entry(0, 9)}}}', b"12345"), "fewer"),
    ("bytes after the data", header_file(f'{{"a": {entry(0, 1)}}}', b"12345"), "more"),
]


@pytest.mark.parametrize(("content", "said"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_files_in_another_format_have_a_reason(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / SINGLE
    path.write_bytes(content)
    with pytest.raises(StageError) as caught:
        read_header(path)
    assert caught.value.reason is Reason.INVALID_MODEL
    assert SINGLE in caught.value.message
    assert said in caught.value.message


def test_a_header_above_the_limit_of_the_format_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    with pytest.raises(StageError, match="100000001 bytes"):
        read_header(path)


def reason_of_header(path: Path) -> Reason | None:
    try:
        read_header(path)
    except StageError as error:
        return error.reason
    return None


def test_any_damage_of_a_header_gives_a_reason_and_never_a_crash(tmp_path: Path) -> None:
    """Change, repeat or cut bytes of 2,000 headers."""
    whole = header_file(f'{{"a": {entry(0, 4)}, "b": {entry(4, 8, [2], "F16")}}}', b"12345678")
    generator = np.random.default_rng(3)
    path = tmp_path / SINGLE
    rejections = 0
    for _ in range(2_000):
        damaged = bytearray(whole)
        for _ in range(int(generator.integers(1, 4))):
            place = int(generator.integers(0, len(damaged)))
            match int(generator.integers(0, 3)):
                case 0:
                    damaged[place] = int(generator.integers(0, 256))
                case 1:
                    damaged[place:place] = damaged[place : place + 5]
                case _:
                    del damaged[place : place + int(generator.integers(1, 9))]
        path.write_bytes(damaged)
        reason = reason_of_header(path)
        assert reason in {None, Reason.INVALID_MODEL}
        rejections += reason is not None
    assert rejections > 1_500
