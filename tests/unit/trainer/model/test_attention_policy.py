"""The attention of a run's passes: which one for which device and model, and that the reason says what decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_trainer.model.attention_policy import AttentionChoice, AttentionFacts, choose_attention

_GPU = AttentionFacts(
    device="cuda",
    packed=True,
    capped=False,
    fused=True,
    query_width=128,
    value_width=128,
    torch=(2, 15),
    capability=(9, 0),
)
_CPU: dict[str, Any] = {"device": "cpu", "capability": None}


def _choose(**changes: Any) -> AttentionChoice:
    return choose_attention(replace(_GPU, **changes))


@pytest.mark.parametrize(
    ("changes", "backend", "said"),
    [
        ({}, "Varlen", "bounds of the rows"),
        ({"capability": (8, 0), "query_width": 256, "value_width": 256}, "Varlen", "bounds of the rows"),
        ({"capability": (7, 5)}, None, "must be 8.0 or higher, found 7.5"),
        ({"capability": None}, None, "must be 8.0 or higher, found none"),
        ({"torch": (2, 10)}, None, "torch must be 2.11 or later, found 2.10"),
        ({"rocm": True}, None, "GPUs of NVIDIA"),
        ({"query_width": 264, "value_width": 264}, None, "at most 256, found 264"),
        ({"query_width": 100, "value_width": 100}, None, "multiple of 8"),
        ({"query_width": 192}, None, "found 192 and 128"),
        ({"capped": True}, "RowByRow", "caps its scores"),
        (_CPU, "RowByRow", "a CPU has no kernel"),
        ({"packed": False}, "Sdpa", "FlashAttention"),
        ({"packed": False, "query_width": 192}, "Sdpa", "memory-efficient kernel"),
        ({"packed": False, "query_width": 264, "value_width": 264}, "Sdpa", "memory-efficient kernel"),
        ({"packed": False, "capped": True}, "Math", "caps its scores"),
        ({"packed": False, "fused": False}, "Math", "computes its scores itself"),
        ({**_CPU, "packed": False}, "Sdpa", "keeps no scores"),
        ({**_CPU, "packed": False, "capped": True}, "Math", "caps its scores"),
    ],
)
def test_device_and_model_decide_and_the_reason_says_so(
    changes: dict[str, Any], backend: str | None, said: str
) -> None:
    choice = _choose(**changes)
    assert choice.backend == backend
    assert said in choice.reason
    assert len(choice.reason) <= 256


@pytest.mark.parametrize("packed", [True, False])
def test_a_gpu_never_uses_the_kernel_that_plans_by_length(*, packed: bool) -> None:
    assert not _choose(packed=packed).cudnn
    assert _choose(packed=packed, **_CPU).cudnn


def test_without_a_backend_there_is_no_implementation_to_use() -> None:
    with pytest.raises(ValueError, match=r"found none: .*found 7.5"):
        _choose(capability=(7, 5)).implementation  # noqa: B018 -- the property raises
    names = {_choose(capped=capped).implementation for capped in (False, True)}
    assert names == {"finetune_packed_varlen", "finetune_packed_rows"}
