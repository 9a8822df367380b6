from __future__ import annotations

import bz2
import lzma

import pytest
from finetune_trainer.data.rows.file_kinds import file_kind, unknown_binary

from tests.support.containers import CONTAINERS
from tests.support.foreign_files import PAIRS, tar_of


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_in_any_container_are_no_other_kind(container: str) -> None:
    assert file_kind(CONTAINERS[container](PAIRS)) is None


@pytest.mark.parametrize(
    "text",
    [
        b"ORC, prompt\n",
        b"GGUF is a format\n",
        b"MZ\n",
        b"ID3,x\n",
        b"BM25 ranks\n",
        b"LZIP\n",
        b"PACK\n",
        b"BZh9\n",
        b"cat\ndog\n",
    ],
)
def test_text_with_the_letters_of_a_magic_is_text(text: bytes) -> None:
    assert file_kind(text) is None


def test_the_content_of_a_compression_that_is_not_read_gives_the_remedy() -> None:
    for compress in (bz2.compress, lzma.compress):
        kind = file_kind(compress(tar_of()))
        assert kind is not None
        assert kind.what.endswith("that holds a tar archive")
        assert kind.remedy.startswith("unpack it, and give the file inside")


def test_a_small_file_that_unpacks_to_much_costs_little_memory() -> None:
    bomb = bz2.compress(bytes(20_000_000))
    kind = file_kind(bomb)
    assert kind is not None
    assert kind.what == "a bzip2 file"


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (bytes(10), "nothing but zero bytes"),
        (b"hello\x01 world", "binary data (byte 6 is 0x01)"),
        (b"\tone\r\n\x0c two \x1b[0m", None),
        ("na\u00efve".encode("latin-1"), None),
        (b"", None),
    ],
)
def test_bytes_that_no_text_has_are_shown(head: bytes, what: str | None) -> None:
    kind = unknown_binary(head)
    assert (None if kind is None else kind.what) == what
