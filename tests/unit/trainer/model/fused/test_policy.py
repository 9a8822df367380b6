"""Which kernels a run may use: by setting, device, family and the checkpoint that it continues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_trainer.model.fused.policy import KERNELS, KernelChoice, KernelFacts, choose_kernels

_GPU = KernelFacts(wish="Auto", device="cuda", family="llama", activation="silu", capability=(9, 0))


def _choose(**changes: Any) -> KernelChoice:
    return choose_kernels(replace(_GPU, **changes))


def test_a_known_family_on_a_gpu_gets_every_kernel() -> None:
    assert _choose().used == KERNELS
    assert _choose().reason == "RmsNorm, Rope, SwiGlu: as the reference within rounding on this device"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wish": "Reference"}, "training.kernels is Reference"),
        ({"device": "cpu", "capability": None}, "need a C++ compiler, which the image lacks"),
        ({"capability": (7, 5)}, "must be 8.0 or higher, found 7.5"),
        ({"capability": None}, "must be 8.0 or higher, found none"),
        ({"missing": "Triton cannot be used: ImportError"}, "Triton cannot be used: ImportError"),
        ({"family": "bloom"}, "the formulas of the family bloom are not known"),
        ({"begun": ()}, "the run began without kernels"),
    ],
)
def test_a_cause_that_concerns_all_kernels_is_said_once(changes: dict[str, Any], said: str) -> None:
    choice = _choose(**changes)
    assert choice.used == ()
    assert choice.reason.count(said) == 1
    assert "not RmsNorm" not in choice.reason


@pytest.mark.parametrize(
    ("changes", "used", "said"),
    [
        ({"family": "gemma2", "activation": "gelu_pytorch_tanh"}, ("RmsNorm", "Rope"), "activation is gelu"),
        ({"family": "phi3"}, ("RmsNorm",), "not Rope: phi3 rotates in another way"),
        ({"family": "phi3"}, ("RmsNorm",), "not SwiGlu: phi3 has another MLP"),
        ({"family": "olmo2"}, ("RmsNorm", "SwiGlu"), "not Rope"),
        ({"begun": ("Rope",)}, ("Rope",), "not RmsNorm, SwiGlu: the run began without it"),
    ],
)
def test_a_kernel_is_left_out_with_its_own_reason(
    changes: dict[str, Any], used: tuple[str, ...], said: str
) -> None:
    choice = _choose(**changes)
    assert choice.used == used
    assert said in choice.reason


def test_a_run_that_has_begun_with_kernels_keeps_them() -> None:
    assert _choose(begun=KERNELS).used == KERNELS
    assert _choose(begun=(*KERNELS, "Softmax")).used == KERNELS


def test_what_a_self_test_found_joins_the_reasons_in_order() -> None:
    choice = _choose(family="ernie4_5").without({"SwiGlu": "its values differ", "Rope": "never chosen"})
    assert choice.used == ("RmsNorm",)
    assert [name for name, _ in choice.reasons] == ["Rope", "SwiGlu"]
    assert "not Rope: ernie4_5 rotates in another way; not SwiGlu: its values differ" in choice.reason
