from __future__ import annotations

import gzip
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.conversations.formats import detect_format, parse_row
from finetune_trainer.data.rows.reader import MAXIMUM_ROW_BYTES, Row, read_rows
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.containers import COMPRESSIONS, CONTAINERS, JSON_CONTAINERS, parquet, zstd
from tests.support.repository import ROOT
from tests.support.row_mutations import text

Outcome = dict[str, Any] | tuple[RowReason, str]


def read(folder: Path, data: bytes, **options: Any) -> dict[int, Outcome]:
    """Row numbers with their objects, or with the reasons and places of their refusals."""
    path = folder / "dataset.bin"
    path.write_bytes(data)
    return {
        row.number: (row.value.reason, row.value.field) if isinstance(row.value, RowRejected) else row.value
        for row in read_rows([path], **options)
    }


def fault(folder: Path, data: bytes, **options: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        read(folder, data, **options)
    return caught.value


def conversations(count: int) -> list[dict[str, Any]]:
    random = Random(count)  # noqa: S311 -- names a file, no secret
    return [
        {
            "messages": [
                {"role": "user", "content": f'{number}: "quoted", {text(random)}\r\n\u2028'},
                {"role": "assistant", "content": text(random)},
            ]
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_and_compression_gives_the_same_conversations(
    tmp_path: Path, container: str, compression: str
) -> None:
    """The name of the file says nothing: all have the same."""
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


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
_ROWS = st.lists(
    st.fixed_dictionaries({"messages": _JSON}, optional={"id": _JSON, "}": _JSON, '"': _JSON}),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(rows=_ROWS, container=st.sampled_from(sorted(JSON_CONTAINERS)), mark=st.booleans())
def test_any_rows_come_back_from_every_json_container(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], container: str, *, mark: bool
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    data = (b"\xef\xbb\xbf" if mark else b"") + JSON_CONTAINERS[container](rows)
    assert list(read(folder, data).values()) == rows


_CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"prompt": _CELL, "completion": _CELL}), min_size=1, max_size=4),
    container=st.sampled_from(["csv", "tabs", "semicolons", "parquet"]),
)
def test_any_texts_come_back_from_every_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], container: str
) -> None:
    assert list(read(tmp_path_factory.mktemp("rows"), CONTAINERS[container](rows)).values()) == rows


def test_numbers_and_offsets_run_on_over_several_files_of_any_kind(tmp_path: Path) -> None:
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
def test_a_line_that_cannot_be_read_costs_itself_alone(
    tmp_path: Path, line: bytes, expected: Outcome, position: int
) -> None:
    lines = [b'{"n": 1}', b'{"n": 2}']
    lines.insert(position - 1, line)
    wanted: list[Outcome] = [{"n": 1}, {"n": 2}]
    wanted.insert(position - 1, expected)
    assert read(tmp_path, b"\n".join(lines)) == dict(enumerate(wanted, start=1))


def test_an_item_of_an_array_that_cannot_be_read_costs_itself_alone(tmp_path: Path) -> None:
    items = [
        b'{"n": "}],{"}',
        b'{"a": [}',
        b'{"a":\n "\xc3\xa9" x}',
        b"5",
        b'{"a": "\xff"}',
        b'{"a": "' + b"x\\\\" * 4_000_000 + b'"}',
        b"hello",
        b'{"n": 2}',
    ]
    assert list(read(tmp_path, b"\xef\xbb\xbf[\n" + b",\n".join(items) + b"]").values()) == [
        {"n": "}],{"},
        (RowReason.INVALID_JSON, "line 3, column 8"),
        (RowReason.INVALID_JSON, "line 5, column 6"),
        (RowReason.NOT_AN_OBJECT, "line 6, column 1"),
        (RowReason.INVALID_ENCODING, "line 7, column 8"),
        (RowReason.ROW_TOO_LARGE, "row"),
        (RowReason.INVALID_JSON, "line 9, column 1"),
        {"n": 2},
    ]


def test_a_row_of_a_table_that_cannot_be_read_costs_itself_alone(tmp_path: Path) -> None:
    table = (
        b'prompt,completion\r\n"a\nb",c\r\nd\r\n\r\ne,"f"g\r\nh,\xff\r\ni,'
        + b"x" * MAXIMUM_ROW_BYTES
        + b"\r\n"
        b'"' + b"y" * MAXIMUM_ROW_BYTES + b'",j\nk,l,m\nn,'
    )
    assert read(tmp_path, table) == {
        1: {"prompt": "a\nb", "completion": "c"},
        2: (RowReason.INVALID_CSV, "line 4"),
        3: (RowReason.INVALID_CSV, "line 6"),
        4: (RowReason.INVALID_ENCODING, "line 7"),
        5: (RowReason.ROW_TOO_LARGE, "line 8"),
        6: (RowReason.ROW_TOO_LARGE, "line 9"),
        7: (RowReason.INVALID_CSV, "line 10"),
        8: {"prompt": "n", "completion": ""},
    }


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'[INFO] started\n{"n": 1}\n{"n": 2}', [(RowReason.INVALID_JSON, "column 2"), {"n": 1}, {"n": 2}]),
        (b'[1]\n{"n": 1}', [(RowReason.NOT_AN_OBJECT, "line"), {"n": 1}]),
        (b'a, b\n{"n": 1}', [(RowReason.INVALID_JSON, "column 1"), {"n": 1}]),
        (b'{"n": 1\n{"n": 2}\n{"n": 3}', [(RowReason.INVALID_JSON, "column 8"), {"n": 2}, {"n": 3}]),
        (b"not JSON", [(RowReason.INVALID_JSON, "column 1")]),
        (b'[{"n": 1}', [(RowReason.INVALID_JSON, "column 10")]),
        (b'{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        (b'{"data": [1]}', [{"data": [1]}]),
        (b'{"data": [{"n": 1}]}\n{"data": []}', [{"data": [{"n": 1}]}, {"data": []}]),
        (b'{"data": [{"n": 1}, {"n": 2}]}', [{"n": 1}, {"n": 2}]),
        (b"[\n]", []),
        (b"", []),
        (b"\xef\xbb\xbf\n \r\n", []),
        ('{"n": 1}\n'.encode("utf-16"), [(RowReason.INVALID_ENCODING, "byte 1")]),
        ('{"n": 1}\n'.encode("utf-16-be"), [(RowReason.INVALID_ENCODING, "byte 1")]),
        ('{"n": 1}\n'.encode("utf-32-le"), [(RowReason.INVALID_ENCODING, "byte 1")]),
    ],
)
def test_the_first_lines_decide_what_a_file_is(tmp_path: Path, data: bytes, expected: list[Outcome]) -> None:
    assert list(read(tmp_path, data).values()) == expected


def _archive() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("dataset.jsonl", b'{"n": 1}')
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (pickle.dumps([{"messages": []}]), "pickle"),
        (_archive(), "zip archive"),
        (bytes(range(5, 256)), "binary data"),
        # Without a time inside: the bytes name the test, and every process must find the same tests.
        (gzip.compress(gzip.compress(b'{"n": 1}', mtime=0), mtime=0), "compressed twice"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b'[\n{"n": 1}\n{"n": 2}\n]', "line 3, column 1: must be a comma"),
        (
            b'[\n{"n": 1},\n{"n": "\xc3\xa9',
            "line 3, column 9: the value that begins at line 3, column 1 must end",
        ),
        (b'[\n{"n": 1},\n]', "line 3, column 1: must be a value"),
        (b'[\n{"n": 1}\n]\n[]', "line 4, column 1: nothing may follow"),
        (b'{"data": [\n{"n": 1}\n], "more": x}', "the text around the list of rows must be JSON"),
        (b'{"train": [\n{"n": 1}\n], "test": [{"n": 2}]}', "found another in 'test'"),
        (b'prompt,completion\na,"b\nc,d\n', "row 1 (line 2)"),
        (b"prompt,prompt\na,b\n", "found 'prompt' twice"),
        (b"PAR1 and nothing more", "complete Parquet file"),
        (parquet(conversations(50))[:-20], "complete Parquet file"),
        (zstd(parquet(conversations(50))[:-20]), "complete Parquet file"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_malformed_and_says_where(
    tmp_path: Path, data: bytes, said: str
) -> None:
    error = fault(tmp_path, data)
    assert error.reason is Reason.MALFORMED_DATASET
    assert said in error.message


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "plain"])
def test_compressed_data_that_is_cut_or_broken_is_malformed_after_the_rows_before_it(
    tmp_path: Path, compression: str
) -> None:
    data = COMPRESSIONS[compression](CONTAINERS["lines"](conversations(2000)))
    for broken in (data[:-1], data[: len(data) // 2], data[:30], data + b"more"):
        path = tmp_path / "dataset"
        path.write_bytes(broken)
        rows = read_rows([path])
        seen: list[Row] = []
        with pytest.raises(StageError) as caught:
            seen.extend(rows)
        assert caught.value.reason is Reason.MALFORMED_DATASET
        assert "at byte" in caught.value.message
        assert all(isinstance(row.value, dict) for row in seen)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("container", ["lines", "array", "csv", "parquet"])
def test_what_unpacks_to_more_than_the_limit_is_too_large(
    tmp_path: Path, container: str, compression: str
) -> None:
    plain = CONTAINERS[container](conversations(500))
    packed = COMPRESSIONS[compression](plain)
    assert len(read(tmp_path, packed, maximum_bytes=len(plain))) == 500
    assert fault(tmp_path, packed, maximum_bytes=len(plain) - 1).reason is Reason.DATASET_TOO_LARGE


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
def test_a_spoiled_file_ends_in_rows_refusals_or_a_malformed_dataset(
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


def test_parquet_columns_become_json(tmp_path: Path) -> None:
    """Members that are null in a struct are none; dates are text; NaN is no value; images stay bytes."""
    table = pa.table(
        {
            "messages": pa.array(
                [
                    [
                        {"role": "user", "content": "x", "name": None},
                        {"role": "tool", "content": None, "name": "f"},
                    ]
                ],
                pa.large_list(
                    pa.struct({"role": pa.string(), "content": pa.large_string(), "name": pa.string()})
                ),
            ),
            "source": pa.array(["web"]).dictionary_encode(),
            "day": pa.array([20_000], pa.date32()),
            "score": [float("nan")],
            "old": [b"text"],
            "image": [b"\x89PNG"],
            "pairs": pa.array([[(7, 1)]], pa.map_(pa.int64(), pa.int64())),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    assert read(tmp_path, sink.getvalue())[1] == {
        "messages": [{"role": "user", "content": "x"}, {"role": "tool", "name": "f"}],
        "source": "web",
        "day": "2024-10-04",
        "score": None,
        "old": "text",
        "image": b"\x89PNG",
        "pairs": {"7": 1},
    }


def test_parquet_text_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary()).cast(pa.binary()).view(pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    assert list(read(tmp_path, sink.getvalue()).values()) == [
        {"text": "a"},
        (RowReason.INVALID_ENCODING, "text"),
        {"text": "c"},
    ]


def test_parquet_with_two_columns_of_one_name_is_malformed(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), sink)
    assert "two columns or members named 'prompt'" in fault(tmp_path, sink.getvalue()).message


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
    """300 MB of rows need less than 16 MB more than the first row, of Parquet (whose batches Arrow keeps) 96 MB."""
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
