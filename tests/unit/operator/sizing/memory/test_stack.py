"""Stack profiles are read member by member over the trainer's own."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from finetune_operator.sizing.memory.profile import ProfileError
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile, parse_stack
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel


def test_an_empty_document_is_the_default() -> None:
    assert parse_stack({}) == DEFAULT_STACK


def test_members_are_read_by_their_json_names() -> None:
    found = parse_stack(
        {
            "name": "trl",
            "quantization": "NF4",
            "castToFloat32": True,
            "lossChunkTokens": 512,
            "cudaVersion": "12.4",
        }
    )
    assert (found.name, found.quantization, found.cast_to_float32) == ("trl", "NF4", True)
    assert (found.loss_chunk_tokens, found.cuda_version) == (512, (12, 4))


@pytest.mark.parametrize(
    "document",
    [
        {"optimiser": "AdamW"},
        {"optimizer": "Adam"},
        {"castToFloat32": "yes"},
        {"contextBytes": -1},
        {"contextBytes": True},
        {"fragmentation": "3%"},
        {"fragmentation": float("nan")},
        {"cudaVersion": 12},
        {"name": ""},
        [],
        None,
    ],
)
def test_a_bad_member_is_rejected(document: Any) -> None:
    with pytest.raises(ProfileError, match="stack profile"):
        parse_stack(document)


def test_every_bad_member_is_named_at_once() -> None:
    with pytest.raises(ProfileError) as caught:
        parse_stack({"loss": "none", "checkpointing": 3, "speed": 1})
    assert all(name in str(caught.value) for name in ("loss", "checkpointing", "speed"))


@given(st.dictionaries(st.sampled_from([to_camel(field.name) for field in fields(StackProfile)]),
       st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)))  # fmt: skip
def test_any_document_gives_a_profile_or_an_error(document: dict[str, Any]) -> None:
    try:
        assert isinstance(parse_stack(document), StackProfile)
    except ProfileError:
        return


def test_widths_follow_the_types() -> None:
    """Two bytes for bfloat16, four for float32; float32 norms make the residual stream float32."""
    stack = DEFAULT_STACK
    assert (stack.unquantized_width, stack.adapter_width, stack.residual_width) == (2, 4, 2)
    assert replace(stack, adapter_dtype="BFloat16").adapter_width == 2
    wide = replace(stack, unquantized_dtype="Float32")
    assert (wide.unquantized_width, wide.adapter_width, wide.residual_width) == (4, 4, 4)
    assert replace(DEFAULT_STACK, cast_to_float32=True).residual_width == 4


@pytest.mark.parametrize(
    ("document", "fraction"),
    [
        ({}, 0.03),
        ({"loss": "FullLogits"}, 0.03),
        ({"allocator": "Default"}, 0.075),
        ({"allocator": "Default", "loss": "FusedTile"}, 0.075),
        ({"allocator": "Default", "loss": "FullLogitsShifted"}, 0.2),
        ({"allocator": "Default", "fragmentation": 0.05}, 0.05),
        ({"fragmentation": 0}, 0),
        ({"fragmentation": None}, 0.03),
    ],
)
def test_fragmentation_follows_the_allocator_and_the_loss(document: dict[str, Any], fraction: float) -> None:
    """The upper and lower ends of public runs: 4 to 11 % with a chunked loss, 10 to 33 % with all logits."""
    assert parse_stack(document).fragmented == fraction
