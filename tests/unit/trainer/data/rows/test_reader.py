from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.conversations.formats import detect_format, parse_row
from finetune_trainer.data.rows.reader import MAXIMUM_ROW_BYTES, parse_line, read_rows
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.containers import COMPRESSIONS, CONTAINERS
from tests.support.repository import ROOT
from tests.support.row_files import Outcome, conversations, fault, read


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_and_compression_gives_the_same_conversations(
    tmp_path: Path, container: str, compression: str
) -> None:
    """All files have the same name, so only the content decides."""
    rows = conversations(30)
    path = tmp_path / "dataset.txt"
    path.write_bytes(COMPRESSIONS[compression](CONTAINERS[container](rows)))
    found = list(read_rows([path]))
    name = detect_format(found).format
    assert name == "Messages"
    assert [row.number for row in found if container != "lines"] in ([], list(range(1, 31)))
    parsed = [parse_row(row.value, name, "Keep") for row in found if isinstance(row.value, dict)]
    assert parsed == [Conversation(row["messages"]) for row in rows]
    offsets = [row.offset for row in found]
    assert offsets == sorted(offsets)
    assert offsets[-1] <= path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]


_CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"prompt": _CELL, "completion": _CELL}), min_size=1, max_size=4),
    container=st.sampled_from(["csv", "tabs", "semicolons", "parquet"]),
)
def test_any_texts_survive_in_every_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], container: str
) -> None:
    assert list(read(tmp_path_factory.getbasetemp(), CONTAINERS[container](rows)).values()) == rows


def test_numbers_and_offsets_continue_over_files_of_any_kind(tmp_path: Path) -> None:
    rows = conversations(9)
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    paths[0].write_bytes(COMPRESSIONS["zstd"](CONTAINERS["array"](rows[:3])))
    paths[1].write_bytes(b"\n" + CONTAINERS["lines"](rows[3:6]))
    paths[2].write_bytes(CONTAINERS["parquet"](rows[6:]))
    found = list(read_rows(paths))
    assert [row.value for row in found] == rows
    assert [row.number for row in found] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert found[-1].offset == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"hello", (RowReason.INVALID_JSON, "column 1")),
        (b'{"a": [}', (RowReason.INVALID_JSON, "column 8")),
        (b'{"a": "\xc3\xa9" x}', (RowReason.INVALID_JSON, "column 11")),
        (b'{"a": NaN}', (RowReason.INVALID_JSON, "line")),
        (b'{"a": 1, "a": 2}', (RowReason.INVALID_JSON, "line")),
        (b'{"a": 1e400}', (RowReason.INVALID_JSON, "line")),
        (b'{"a": ' + b"1" * 5000 + b"}", (RowReason.INVALID_JSON, "line")),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", (RowReason.INVALID_JSON, "line")),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", (RowReason.INVALID_JSON, "line")),
        (b'{"a": "\xff"}', (RowReason.INVALID_ENCODING, "byte 8")),
        (b"[1, 2]", (RowReason.NOT_AN_OBJECT, "line")),
        (b"null", (RowReason.NOT_AN_OBJECT, "line")),
        (b'{"a": "' + b"x" * MAXIMUM_ROW_BYTES + b'"}', (RowReason.ROW_TOO_LARGE, "row")),
        (b'{"a": "' + b"x" * 100_000_000 + b'"}', (RowReason.ROW_TOO_LARGE, "row")),
        (b'{"a": ' + b"1" * 400 + b"}", {"a": int("1" * 400)}),
        (b'{"a": "\xe2\x80\xa8"}\r', {"a": "\u2028"}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}", json.loads('{"a": ' + "[" * 99 + "]" * 99 + "}")),
    ],
)
@pytest.mark.parametrize("position", [1, 2, 3])
def test_an_unreadable_line_rejects_only_that_line(
    tmp_path: Path, line: bytes, expected: Outcome, position: int
) -> None:
    lines = [b'{"n": 1}', b'{"n": 2}']
    lines.insert(position - 1, line)
    wanted: list[Outcome] = [{"n": 1}, {"n": 2}]
    wanted.insert(position - 1, expected)
    assert read(tmp_path, b"\n".join(lines)) == dict(enumerate(wanted, start=1))


def _spoil(data: bytes, random: Random) -> bytes:
    """Change, insert or remove bytes, more often near the end, where Parquet has its footer."""
    spoiled = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8])):
        first = random.choice([0, max(0, len(spoiled) - 300)])
        at = random.randrange(first, len(spoiled))
        change = random.randrange(4)
        if change == 0:
            spoiled[at] = random.randrange(256)
        elif change == 1:
            spoiled[at:at] = random.choice(
                [b'"', b"{", b"}", b"[", b"]", b",", b"\n", b"\\", b"\0", b"\xff\xfe"]
            )
        elif change == 2:
            del spoiled[at : at + random.randrange(1, 30)]
        else:
            del spoiled[at + random.randrange(1, 1000) :]
        spoiled = spoiled or bytearray(b"x")
    return bytes(spoiled)


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_spoiled_file_ends_in_rows_or_rejections_or_malformed(
    tmp_path: Path, container: str, compression: str
) -> None:
    random = Random(f"{container} {compression}")  # noqa: S311 -- names a file, no secret
    rows = conversations(40)
    data = COMPRESSIONS[compression](CONTAINERS[container](rows))
    for _ in range(60):
        try:
            found = read(tmp_path, _spoil(data, random))
        except StageError as error:
            assert error.reason is Reason.MALFORMED_DATASET  # noqa: PT017 -- most files do not end so
        else:
            assert len(found) <= 2 * len(data)


_READ = """
import sys
from pathlib import Path
from finetune_trainer.data.rows.reader import read_rows

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

paths = [Path(name) for name in sys.argv[1:]]
rows = read_rows(paths)
next(rows)
before = peak()
count = 1 + sum(1 for _ in rows)
print(count, peak() - before)
"""


@pytest.mark.parametrize("kind", ["lines", "array", "gzip", "parquet"])
def test_memory_does_not_grow_with_the_size_of_the_file(tmp_path: Path, kind: str) -> None:
    """300 MB of rows need at most 16 MB more than the first row. Parquet needs 96 MB because Arrow keeps batches."""
    row = {"messages": [{"role": role, "content": "some words " * 4000} for role in ("user", "assistant")]}
    line = json.dumps(row).encode()
    path = tmp_path / "dataset"
    count = 300_000_000 // len(line)
    if kind == "parquet":
        schema = pa.Table.from_pylist([row]).schema
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for _ in range(count // 50):
                writer.write_table(pa.Table.from_pylist([row] * 50), row_group_size=50)
        count = count // 50 * 50
    elif kind == "gzip":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(count):
                file.write(line + b"\n")
    else:
        separator = b",\n" if kind == "array" else b"\n"
        with path.open("wb") as file:
            file.write(b"[" if kind == "array" else b"")
            for number in range(count):
                file.write((separator if number else b"") + line)
            file.write(b"]" if kind == "array" else b"")
    output = subprocess.run(
        [sys.executable, "-c", _READ, str(path)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "trainer_image" / "src")},
    ).stdout
    path.unlink()
    found, growth = (int(number) for number in output.split())
    assert found == count
    assert growth < (96 if kind == "parquet" else 16) << 20


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[\n{"n": 1}\n{"n": 2}\n]', "line 3, column 1: must be a comma"),
        (
            b'[\n{"n": 1},\n{"n": "\xc3\xa9',
            "line 3, column 9: the value that begins at line 3, column 1 must end",
        ),
        (b'[\n{"n": 1},\n]', "line 3, column 1: must be a value"),
        (b'[\n{"n": 1}\n]\n[]', "line 4, column 1: nothing may follow"),
        (b'{"data": [\n{"n": 1}\n], "more": x}', "the text around the list of rows must be JSON"),
        (b'{"train": [\n{"n": 1}\n], "test": [{"n": 2}]}', "found another in 'test'"),
    ],
)
def test_broken_json_between_rows_is_malformed_with_its_position(
    tmp_path: Path, data: bytes, said: str
) -> None:
    error = fault(tmp_path, data)
    assert error.reason is Reason.MALFORMED_DATASET
    assert said in error.message


def test_line_numbers_count_blank_lines_and_ignore_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"b": 2}\r\n{"c": 3}')
    assert [(row.number, row.value) for row in read_rows([path])] == [
        (1, {"a": 1}),
        (4, {"b": 2}),
        (5, {"c": 3}),
    ]


@pytest.mark.parametrize(
    ("line", "expected", "place"),
    [
        (b'{"messages": [}', RowReason.INVALID_JSON, "column 15"),
        (b'{"a": "\xff"}', RowReason.INVALID_ENCODING, "byte 8"),
        (b"[1, 2]", RowReason.NOT_AN_OBJECT, "line"),
        (b"null", RowReason.NOT_AN_OBJECT, "line"),
        (b"[" * 100_000, RowReason.INVALID_JSON, "line"),
    ],
)
def test_a_line_that_is_no_object_has_its_reason_and_position(
    line: bytes, expected: RowReason, place: str
) -> None:
    with pytest.raises(RowRejected) as caught:
        parse_line(line)
    assert (caught.value.reason, caught.value.field) == (expected, place)
