from __future__ import annotations

import pytest
from finetune_trainer.data.rows.encodings import wide_encoding

TEXTS = ['{"prompt": "q"}\n', "prompt,completion\r\n", "[\n  {}", "\u4f60\u597d {1}, \U0001f600\n" * 200]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_wide_text_is_known_with_and_without_its_mark(text: str, codec: str) -> None:
    assert wide_encoding(text.encode(codec)) == codec[:6].upper()


@pytest.mark.parametrize(
    "data",
    [
        *(text.encode() for text in TEXTS),
        b"",
        b"{}",
        bytes(1000),
        bytes(range(256)) * 8,
        b"SQLite format 3\x00\x10\x00\x01\x01\x00\x40\x20\x20",
        b"\x00\x01\x00\x02" * 300,
    ],
)
def test_other_bytes_are_no_wide_text(data: bytes) -> None:
    assert wide_encoding(data) is None
