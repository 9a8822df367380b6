from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from finetune_operator.sizing.memory.calibration import (
    NO_CALIBRATION,
    Run,
    fit_calibration,
    parse_calibration,
)
from finetune_operator.sizing.memory.profile import ProfileError, member
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile, parse_stack
from hypothesis import given
from hypothesis import strategies as st


def test_an_empty_document_is_the_default() -> None:
    assert parse_stack({}) == DEFAULT_STACK
    assert parse_calibration({}) == NO_CALIBRATION


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
def test_a_bad_member_is_refused(document: Any) -> None:
    with pytest.raises(ProfileError, match="stack profile"):
        parse_stack(document)


def test_every_bad_member_is_named_at_once() -> None:
    with pytest.raises(ProfileError) as caught:
        parse_stack({"loss": "none", "checkpointing": 3, "speed": 1})
    assert all(name in str(caught.value) for name in ("loss", "checkpointing", "speed"))


@given(st.dictionaries(st.sampled_from([member(field.name) for field in fields(StackProfile)]),
       st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)))  # fmt: skip
def test_any_document_gives_a_profile_or_a_refusal(document: dict[str, Any]) -> None:
    try:
        assert isinstance(parse_stack(document), StackProfile)
    except ProfileError:
        return


@pytest.mark.parametrize(
    "document", [{"activationFactor": 5}, {"fragmentation": 2}, {"lowResidual": 0.2}, {"unknown": 1}]
)
def test_a_calibration_beyond_reason_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ProfileError):
        parse_calibration(document)


def _run(static: int, varying: int, factor: float, fragmentation: float, context: int) -> Run:
    allocated = static + round(varying * factor)
    reserved = round(allocated * (1 + fragmentation))
    return Run(static + varying, static, static + varying + 10**9, allocated, reserved, reserved + context)


def test_a_fit_finds_the_constants_that_made_the_runs() -> None:
    runs = [_run(4 * 10**9, varying, 1.06, 0.04, 4 * 10**8) for varying in (10**9, 3 * 10**9, 9 * 10**9)]
    found = fit_calibration(runs, "three runs")
    assert found.activation_factor == pytest.approx(1.06, abs=1e-3)
    assert found.fragmentation == pytest.approx(0.04, abs=1e-3)
    assert found.context_bytes == pytest.approx(4 * 10**8, rel=1e-3)
    assert found.high_residual == pytest.approx(0, abs=1e-3)


def test_one_odd_run_widens_the_interval_and_leaves_the_constants() -> None:
    runs = [_run(4 * 10**9, 10**9 * n, 1.0, 0.02, 4 * 10**8) for n in range(1, 6)]
    odd = _run(4 * 10**9, 3 * 10**9, 1.5, 0.02, 4 * 10**8)
    found = fit_calibration([*runs, odd], "six runs")
    assert found.activation_factor == pytest.approx(1.0, abs=1e-3)
    assert found.high_residual > 0.1


def test_two_runs_are_too_few() -> None:
    with pytest.raises(ProfileError, match="found 2"):
        fit_calibration([_run(10**9, 10**9, 1, 0, 0)] * 2, "two")
