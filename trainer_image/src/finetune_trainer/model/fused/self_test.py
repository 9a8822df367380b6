"""Compares each kernel with the model's own layer on the device, forward and backward, before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.model.fused.layers import KernelSet, gated_mlps, normed, norms, rotated, rotation_module
from finetune_trainer.model.out_of_memory import is_device_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from finetune_trainer.model.fused.policy import Kernel, NormForm

_TOKENS = 7
_HEADS = 3
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
"""Of the root mean square of a difference, as a share of that of the reference: about one rounding."""


def failures(model: Any, kernels: KernelSet, used: Collection[Kernel], form: NormForm) -> dict[Kernel, str]:
    """Return the kernels of `used` that differ from the reference or fail, each with the reason.

    Raises the device's out-of-memory error. Random states are as before.
    """
    found: dict[Kernel, str] = {}
    tests: dict[Kernel, Callable[[], str | None]] = {
        "RmsNorm": lambda: _norm_fault(model, kernels, form),
        "Rope": lambda: _rotation_fault(model, kernels),
        "SwiGlu": lambda: _gate_fault(model, kernels),
    }
    for name in used:
        try:
            fault = tests[name]()
        except Exception as error:
            # A kernel may fail in any way, and must not end the run.
            if is_device_out_of_memory(error):
                raise
            fault = f"its self-test failed: {type(error).__name__}: {str(error)[:120]}"
        if fault is not None:
            found[name] = fault
    return found


def _norm_fault(model: Any, kernels: KernelSet, form: NormForm) -> str | None:
    layers = norms(model)
    if not layers:
        return "the model has no such layer"
    # One of each width: a model may also have norms of its heads.
    for layer in {layer.weight.shape[0]: layer for layer in layers}.values():
        fault = _difference(
            lambda x, layer=layer: (layer(x),),
            lambda x, layer=layer: (normed(kernels, layer, x, form),),
            [_random(layer.weight, 1, _TOKENS, layer.weight.shape[0])],
        )
        if fault is not None:
            return fault
    return None


def _gate_fault(model: Any, kernels: KernelSet) -> str | None:
    layers = gated_mlps(model)
    if not layers:
        return "the model has no such layer"
    layer = layers[0]
    like = _parameter(model)
    width = getattr(layer.gate_proj, "out_features", 64)
    inputs = [3 * _random(like, 1, _TOKENS, width, seed=seed) for seed in (1, 2)]
    return _difference(
        lambda gate, up: (layer.act_fn(gate) * up,), lambda gate, up: (kernels.gate(gate, up),), inputs
    )


def _rotation_fault(model: Any, kernels: KernelSet) -> str | None:
    module = rotation_module(model)
    if module is None:
        return "the model has no such function"
    like = _parameter(model)
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # As a model makes them: heads come from a transposition.
    heads = [
        _random(like, 1, _TOKENS, count, width, seed=seed).transpose(1, 2)
        for seed, count in ((1, _HEADS), (2, 1))
    ]
    half = _random(like, 1, _TOKENS, width // 2, seed=3)
    angles = torch.cat((half, half), dim=-1).float()
    cosines, sines = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
    return _difference(
        lambda q, k: module.apply_rotary_pos_emb(q, k, cosines, sines),
        lambda q, k: rotated(kernels, q, k, cosines, sines),
        heads,
    )


def _difference(reference: Any, kernel: Any, inputs: Sequence[torch.Tensor]) -> str | None:
    """Describe the first difference between values or gradients of two functions; None if both agree."""
    expected, found = _results(reference, inputs), _results(kernel, inputs)
    for one, other, what in zip(found, expected, _names(len(expected), len(inputs)), strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"its {what} must be {tuple(other.shape)} of {other.dtype}, found {tuple(one.shape)} of {one.dtype}"
        share = float((one.float() - other.float()).norm() / other.float().norm())
        allowed = TOLERANCE[other.dtype]
        # Not a number is no agreement.
        if not share <= allowed:
            return f"its {what} must differ by at most {allowed:.1g} of the reference, found {share:.2g}"
    return None


def _results(compute: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs of `compute`, and the gradients of its inputs."""
    given = [value.detach().requires_grad_() for value in inputs]
    with torch.enable_grad():
        outputs = list(compute(*given))
        weights = [_random(output, *output.shape, seed=9 + place) for place, output in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, given, weights)
    return [*(output.detach() for output in outputs), *gradients]


def _names(results: int, inputs: int) -> list[str]:
    return ["values"] * (results - inputs) + ["gradients"] * inputs


def _parameter(model: Any) -> torch.Tensor:
    """Return a tensor with the type and device of the activations."""
    found: torch.Tensor = model.get_input_embeddings().weight
    return found


def _random(like: torch.Tensor, *shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal values. They come from a generator of their own, so the run's random states do not change."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)
