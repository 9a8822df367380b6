from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.rows.rejection import RowReason
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.containers import JSON_CONTAINERS
from tests.support.row_files import read

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


def test_an_unreadable_item_of_an_array_costs_only_itself(tmp_path: Path) -> None:
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
