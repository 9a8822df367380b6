from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.rows.json_scanner import JsonScanner, Place, ScanError
from finetune_trainer.data.rows.rejection import RowReason
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.containers import JSON_CONTAINERS
from tests.support.row_files import read

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12),
    # An object of numbered values alone is a table of pandas.
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4).filter(lambda name: not name.isdecimal()), inner, max_size=3)
    ),
    max_leaves=10,
)


_ROWS = st.lists(
    st.fixed_dictionaries({"messages": _JSON}, optional={"id": _JSON, "}": _JSON, '"': _JSON}),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@example(rows=[{"messages": [""], "id": None, '"': [""]}], container="lines", mark=False)
@example(rows=[{"messages": [], "id": ["a"], "tools": ["{}"]}], container="lines", mark=True)
@given(rows=_ROWS, container=st.sampled_from(sorted(JSON_CONTAINERS)), mark=st.booleans())
def test_any_rows_survive_in_every_json_container(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], container: str, *, mark: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = (b"\xef\xbb\xbf" if mark else b"") + JSON_CONTAINERS[container](rows)
    assert list(read(folder, data).values()) == rows


def test_an_unreadable_item_of_an_array_rejects_only_that_item(tmp_path: Path) -> None:
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


class Trickle:
    """Returns only a few bytes of a text at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size

    def read(self, size: int, /) -> bytes:
        taken, self._data = self._data[: min(size, self._size)], self._data[min(size, self._size) :]
        return taken


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_values_do_not_depend_on_the_cuts_of_the_text(size: int) -> None:
    text = b' [ {"a\\"}": "\\\\"} ,[1,["]"]], "x\\\\\\"y",\n tru, 5 ] '
    scanner = JsonScanner(Trickle(text, size), 100)
    values = [(str(value.place), value.raw) for value in scanner.items()]
    assert values == [
        ("line 1, column 4", b'{"a\\"}": "\\\\"}'),
        ("line 1, column 20", b'[1,["]"]]'),
        ("line 1, column 31", b'"x\\\\\\"y"'),
        ("line 2, column 2", b"tru"),
        ("line 2, column 7", b"5"),
    ]
    assert scanner.peek() == b""


def test_a_value_that_is_too_large_is_skipped_without_its_bytes() -> None:
    scanner = JsonScanner(Trickle(b'["' + b"x" * 50 + b'", 2]', 10), 20)
    assert [value.raw for value in scanner.items()] == [None, b"2"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"[1 2]", "line 1, column 4: must be a comma or the end of the array, found '2'"),
        (b"[1,\n]", "line 2, column 1: must be a value, found ']'"),
        (b'[{"a": 1', "line 1, column 9: the value that begins at line 1, column 2 must end"),
        (b"[", "line 1, column 2: must be a value, found the end of the file"),
        (b"{}", "line 1, column 1: must be an array, found '{'"),
    ],
)
def test_a_fault_between_values_is_reported_with_its_position(text: bytes, fault: str) -> None:
    with pytest.raises(ScanError) as caught:
        list(JsonScanner(Trickle(text, 2), 100).items())
    assert str(caught.value).startswith(fault)


def test_the_members_of_an_object_have_the_offsets_of_their_values() -> None:
    text = b'{"a": 1, "b" : [ {} ], "c":"d"}'
    members = list(JsonScanner(Trickle(text, 3), 100).members())
    assert [(name, text[offset : offset + 3]) for name, offset in members] == [
        (b'"a"', b"1, "),
        (b'"b"', b"[ {"),
        (b'"c"', b'"d"'),
    ]


def test_a_position_after_text_counts_lines_and_characters() -> None:
    assert str(Place(3, 5).after("é{")) == "line 3, column 7"
    assert str(Place(3, 5).after("a\nbc\nd")) == "line 5, column 2"
