"""Kernels in a model compute only where they are allowed to, and change no name, parameter or result."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.fused.layers import FusedLayers, install, rotation_module
from finetune_trainer.model.fused.policy import FAMILIES, KERNELS
from finetune_trainer.model.packed_attention import PackedRows, packed_states, using_attention
from peft import LoraConfig, get_peft_model

from tests.support.architectures import VOCABULARY
from tests.support.kernel_sets import EqualKernels, chosen, frozen

_LENGTHS = (9, 5)


def _adapted(family: str) -> Any:
    torch.manual_seed(3)
    model = get_peft_model(
        frozen(family), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    return model.train()


def _learn(model: Any, layers: FusedLayers) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return states of packed rows and gradients of the adapter."""
    model.zero_grad()
    # Some families drop states.
    torch.manual_seed(4)
    rows = PackedRows.of(_LENGTHS)
    ids = torch.arange(sum(_LENGTHS))[None] % VOCABULARY
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None]
    attention = attention_of(model.config, "cpu", packed=True).implementation
    with using_attention(model, attention), layers.active():
        states = packed_states(model, ids, positions, rows)
        states.square().sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_states_and_gradients_of_an_adapted_model_stay_the_same(family: str, *, checkpointing: bool) -> None:
    model = _adapted(family)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected, gradients = _learn(model, FusedLayers())
    kernels = EqualKernels()
    layers = install(model, kernels, chosen(family), FAMILIES[family].norm)
    states, found = _learn(model, layers)
    assert layers.used == tuple(chosen(family))
    assert set(kernels.calls) == set(chosen(family))
    assert torch.allclose(states, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4 * scale), name


def test_every_norm_gate_and_rotation_of_a_pass_is_computed_by_its_kernel() -> None:
    """Two layers have two norms of states and two of heads each, and one norm follows the last."""
    model = _adapted("qwen3")
    kernels = EqualKernels()
    layers = install(model, kernels, ("RmsNorm", "Rope", "SwiGlu"), "RoundFirst")
    _learn(model, layers)
    assert kernels.calls == {"RmsNorm": 2 * 4 + 1, "Rope": 2 * 2, "SwiGlu": 2}


def test_outside_of_a_step_nothing_computes_in_a_kernel() -> None:
    """An evaluation and the record for MERGE have the reference path, also after a step that failed."""
    model = _adapted("llama")
    ids = torch.arange(8)[None]
    expected = model(input_ids=ids).logits
    kernels = EqualKernels()
    layers = install(model, kernels, ("RmsNorm", "Rope", "SwiGlu"), "RoundFirst")
    function = rotation_module(model).apply_rotary_pos_emb

    def fail() -> None:
        with layers.active():
            assert rotation_module(model).apply_rotary_pos_emb is not function
            raise RuntimeError("a step failed")

    with pytest.raises(RuntimeError, match="a step failed"):
        fail()
    assert rotation_module(model).apply_rotary_pos_emb is function
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert not kernels.calls


def test_names_parameters_and_hooks_stay() -> None:
    model = _adapted("llama")
    seen: list[str] = []
    norm = model.get_submodule("base_model.model.model.norm")
    norm.register_forward_hook(lambda *_arguments: seen.append("norm"))
    names = [name for name, _ in model.named_modules()]
    parameters = list(model.state_dict())
    kinds = [type(module).__name__ for module in model.modules()]
    layers = install(model, EqualKernels(), ("RmsNorm", "Rope", "SwiGlu"), "RoundFirst")
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.state_dict()) == parameters
    assert [type(module).__name__ for module in model.modules()] == kinds
    _learn(model, layers)
    assert seen == ["norm"]


def test_a_copied_model_has_kernels_of_its_own_state() -> None:
    model = _adapted("llama")
    kernels = EqualKernels()
    layers = install(model, kernels, KERNELS[:1], "RoundFirst")
    other = copy.deepcopy(model)
    with layers.active():
        other(input_ids=torch.arange(4)[None])
    assert not kernels.calls


def test_a_model_that_is_dropped_leaves_no_reference_to_itself() -> None:
    """A rung that does not fit is dropped as a whole, before the next one is loaded."""
    model = frozen("llama")
    layers = install(model, EqualKernels(), ("RmsNorm", "Rope", "SwiGlu"), "RoundFirst")
    norm = weakref.ref(model.model.norm)
    gc.collect()
    gc.disable()
    try:
        del model
        assert norm() is None
    finally:
        gc.enable()
    with layers.active():
        pass


def test_a_call_with_other_arguments_or_types_has_the_reference() -> None:
    model = frozen("llama")
    kernels = EqualKernels()
    layers = install(model, kernels, ("RmsNorm", "Rope"), "RoundFirst")
    heads = torch.randn(1, 5, 2, 8)
    angles = torch.randn(1, 5, 8)
    module = rotation_module(model)
    expected = module.apply_rotary_pos_emb(heads, heads, angles.cos(), angles.sin(), unsqueeze_dim=2)
    with layers.active():
        found = module.apply_rotary_pos_emb(heads, heads, angles.cos(), angles.sin(), unsqueeze_dim=2)
        model.model.norm(torch.randn(1, 3, 32, dtype=torch.float16))
    assert torch.equal(found[0], expected[0])
    assert not kernels.calls


def test_without_kernels_nothing_is_installed() -> None:
    model = frozen("llama")
    kind = type(model.model.norm)
    layers = install(model, EqualKernels(), (), "RoundFirst")
    assert type(model.model.norm) is kind
    with layers.active():
        assert layers.used == ()
