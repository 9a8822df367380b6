"""The self-test lets equal kernels pass, and finds those that differ in a value or a gradient, fail or have no place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.model.fused.policy import FAMILIES, KERNELS
from finetune_trainer.model.fused.self_test import failures

from tests.support.kernel_sets import EqualKernels, RaisingKernels, WrongGradientKernels, chosen, frozen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_formulas_of_every_listed_family_are_those_of_its_layers(family: str, dtype: torch.dtype) -> None:
    kernels = EqualKernels()
    model = frozen(family, dtype)
    found = failures(model, kernels, chosen(family), FAMILIES[family].norm)
    assert found == {}
    assert set(kernels.calls) == set(chosen(family))


def test_random_states_stay_as_they_were() -> None:
    model = frozen("llama")
    before = torch.get_rng_state()
    failures(model, EqualKernels(), KERNELS, "RoundFirst")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("family", "form"), [("llama", "OneMore"), ("gemma", "RoundFirst")])
def test_the_formula_of_another_family_is_found(family: str, form: Any) -> None:
    found = failures(frozen(family), EqualKernels(), ["RmsNorm"], form)
    assert "its values must differ by at most" in found["RmsNorm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_gradient_is_found_although_the_values_are_right(dtype: torch.dtype) -> None:
    found = failures(frozen("llama", dtype), WrongGradientKernels(), KERNELS, "RoundFirst")
    assert found.keys() == {"SwiGlu"}
    assert "its gradients must differ by at most" in found["SwiGlu"]


def test_a_kernel_that_raises_or_gives_no_numbers_is_left_out_alone() -> None:
    found = failures(frozen("qwen3"), RaisingKernels(), KERNELS, "RoundFirst")
    assert found.keys() == {"RmsNorm", "Rope"}
    assert "RuntimeError: ptxas fatal" in found["RmsNorm"]
    assert "found nan" in found["Rope"]


def test_a_model_without_such_layers_says_so() -> None:
    found = failures(frozen("bloom"), EqualKernels(), KERNELS, "RoundFirst")
    assert found.keys() == set(KERNELS)
    assert found["RmsNorm"] == "the model has no such layer"


def test_norms_that_are_trained_have_no_kernel() -> None:
    model = frozen("llama")
    for name, value in model.named_parameters():
        value.requires_grad_(requires_grad="norm" in name)
    assert "no such layer" in failures(model, EqualKernels(), ["RmsNorm"], "RoundFirst")["RmsNorm"]


def test_a_full_gpu_is_an_error_and_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_settings: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    kernels = EqualKernels()
    monkeypatch.setattr(kernels, "gate", full)
    with pytest.raises(torch.OutOfMemoryError):
        failures(frozen("llama"), kernels, KERNELS, "RoundFirst")
