from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from finetune_operator.cluster.apply_body import encode_apply
from hypothesis import given
from hypothesis import strategies as st

CHARACTERS = st.characters(exclude_categories=["Cs"])
# A key of YAML has at most 1,024 characters, escapes included. Those of a status are names of fields.
KEYS = st.text(CHARACTERS, min_size=1, max_size=80)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(CHARACTERS),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, VALUES))
def test_yaml_and_json_read_the_same(body: dict[str, Any]) -> None:
    text = encode_apply(body)
    assert json.loads(text) == body
    assert yaml.safe_load(text) == body


@pytest.mark.parametrize(
    "character", ["😀", "\U0010ffff", "é", "\x7f", "\x85", "\u2028", "\ufeff", "\uffff", '"', "\\"]
)
def test_each_kind_of_character_survives(character: str) -> None:
    body = {f"key {character}": f"{character} and \\ud83d {character}"}
    assert yaml.safe_load(encode_apply(body)) == json.loads(encode_apply(body)) == body


def test_nothing_is_escaped_as_half_a_pair() -> None:
    text = encode_apply({"😀": "😀", "lone": "a\ud83db\ude00"})
    assert b"\\ud" not in text
    assert yaml.safe_load(text) == {"😀": "😀", "lone": "a\ufffdb\ufffd"}
