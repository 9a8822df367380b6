from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.contract.bounded import Count, Digest, Finite, Text16, Time, Word, clean_text
from pydantic import TypeAdapter, ValidationError


def test_control_characters_and_lone_surrogates_are_replaced() -> None:
    assert clean_text("a\x00\x1b[31mb\tc\nd\ud800\u202e") == "a  [31mb c\nd? "
    assert TypeAdapter(Text16).validate_python("x\ud800\x07") == "x? "


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Text16, "x" * 17),
        (Word, "no word"),
        (Digest, "sha256:0"),
        (Count, 2**63),
        (Count, "3"),
        (Finite, float("nan")),
        (Time, "2026-11-24T09:00:00"),
        (Time, "0001-01-01T00:00:00+14:00"),
    ],
)
def test_a_value_out_of_bounds_is_rejected(kind: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


def test_a_time_is_read_in_utc() -> None:
    moment = TypeAdapter(Time).validate_python("2026-11-24T10:00:00+01:00")
    assert (moment.hour, moment.utcoffset()) == (9, timedelta(0))
