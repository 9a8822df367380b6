"""The kernels of a run: chosen, tried, and put into the model."""

from __future__ import annotations

import logging

import pytest
from finetune_trainer.model.fused.device import DeviceKernels
from finetune_trainer.model.fused.policy import FAMILIES as POLICY
from finetune_trainer.model.fused.prepare import prepare_kernels

from tests.support.architectures import FAMILIES
from tests.support.kernel_sets import EqualKernels, RaisingKernels, frozen, on_a_gpu


def test_kernels_that_agree_are_used() -> None:
    found = prepare_kernels(frozen("llama"), "Auto", on_a_gpu(EqualKernels()), None)
    assert found.choice.used == found.layers.used == ("RmsNorm", "Rope", "SwiGlu")


def test_kernels_that_fail_are_left_out_with_the_reason() -> None:
    found = prepare_kernels(frozen("llama"), "Auto", on_a_gpu(RaisingKernels()), None)
    assert found.choice.used == found.layers.used == ("SwiGlu",)
    assert "not RmsNorm: its self-test failed: RuntimeError: ptxas fatal" in found.choice.reason


def test_the_setting_turns_everything_off() -> None:
    kernels = EqualKernels()
    found = prepare_kernels(frozen("llama"), "Reference", on_a_gpu(kernels), None)
    assert found.layers.used == ()
    assert found.choice.reason == "training.kernels is Reference"
    assert not kernels.calls


def test_another_activation_has_no_kernel() -> None:
    found = prepare_kernels(frozen("gemma"), "Auto", on_a_gpu(EqualKernels()), None)
    assert found.layers.used == ("RmsNorm", "Rope")
    assert "the activation is gelu" in found.choice.reason


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - POLICY.keys()))
def test_a_model_of_any_other_family_is_left_as_it_is(family: str) -> None:
    found = prepare_kernels(frozen(family), "Auto", on_a_gpu(EqualKernels()), None)
    assert found.layers.used == ()
    assert f"the formulas of the family {family} are not known" in found.choice.reason


def test_a_cpu_computes_as_the_reference() -> None:
    found = prepare_kernels(frozen("llama"), "Auto", DeviceKernels("cpu"), None)
    assert found.layers.used == ()
    assert "C++ compiler" in found.choice.reason


def test_a_run_that_loses_a_kernel_goes_on_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = prepare_kernels(frozen("llama"), "Auto", on_a_gpu(RaisingKernels()), ("RmsNorm", "SwiGlu"))
    assert found.layers.used == ("SwiGlu",)
    assert "began with the kernels RmsNorm and continues without them" in caplog.text
