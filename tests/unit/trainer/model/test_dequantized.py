"""Dequantized layers compute what the 4-bit ones compute, in training and in float32."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from finetune_trainer.contract.run_spec import Lora
from finetune_trainer.evaluation.float32 import computes_in_float32, in_float32
from finetune_trainer.model.dequantized import DequantizedLinear, dequantize_weights, dequantized_modules
from finetune_trainer.model.load import cast_model, load_quantized, quantized_modules
from finetune_trainer.stages.train.adapter import add_adapter
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.workspaces import prepare, write_base

FAMILIES = ("llama", "mistral", "qwen3")
IDS = torch.tensor([[5, 9, 200, 31, 7, 7], [1, 2, 3, 4, 5, 6]])


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(f"dequantized-{request.param}")
    write_base(root / "base", request.param)
    prepare(root / "workspace", root / "base")
    return WorkspaceLayout(root / "workspace").quantized_model


def _loaded(checkpoint: Path, dtype: torch.dtype, *, dequantized: bool) -> Any:
    model = load_quantized(checkpoint, "cpu")
    cast_model(model, dtype)
    if dequantized:
        dequantize_weights(model)
    return model


def _packed(values: torch.Tensor, *, nested: bool) -> Any:
    """A 4-bit layer as far as it is read."""
    packed, state = quantize_4bit(values, quant_type="nf4", compress_statistics=nested)
    weight = SimpleNamespace(data=packed, quant_state=state)
    return SimpleNamespace(
        in_features=values.shape[1], out_features=values.shape[0], bias=None, weight=weight
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(70, 100), (3, 64), (70000, 64), (1024, 4096)])
def test_the_values_in_float32_come_back_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, int], *, nested: bool
) -> None:
    """Rows differ by some powers of ten, and the first row and the last block are zero."""
    torch.manual_seed(3)
    values = torch.randn(shape) * (3 * torch.randn(shape[0], 1)).exp().clamp(1e-3, 1e3)
    values[0] = 0
    values.view(-1)[-64:] = 0
    packed = _packed(values.to(dtype), nested=nested)
    layer = DequantizedLinear(packed)
    assert layer.weight.dtype == dtype
    packed.weight.quant_state.dtype = torch.float32
    expected = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
    assert torch.equal(layer.exact_values(), expected)
    assert torch.equal(layer.weight, expected.to(dtype))


@torch.no_grad()
def test_every_4_bit_module_is_replaced_under_its_name_with_equal_values(checkpoint: Path) -> None:
    packed = _loaded(checkpoint, torch.float32, dequantized=False)
    plain = _loaded(checkpoint, torch.float32, dequantized=True)
    before = quantized_modules(packed)
    found = dequantized_modules(plain)
    assert before.keys() == found.keys()
    assert len(found) == 14
    assert not quantized_modules(plain)
    assert not any(parameter.requires_grad for module in found.values() for parameter in module.parameters())
    for name, module in before.items():
        assert torch.equal(dequantize_4bit(module.weight.data, module.weight.quant_state), found[name].weight)
    assert torch.allclose(plain(IDS).logits, packed(IDS).logits, atol=1e-5)


@torch.no_grad()
def test_in_float32_a_model_in_bf16_computes_with_the_same_weights_as_a_packed_one(checkpoint: Path) -> None:
    """MERGE compares with these numbers. Weights that were rounded to bf16 would be others."""
    packed = _loaded(checkpoint, torch.bfloat16, dequantized=False)
    plain = _loaded(checkpoint, torch.bfloat16, dequantized=True)
    before = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in plain.named_parameters()}
    coarse = plain(IDS).logits
    with in_float32(packed), in_float32(plain):
        assert computes_in_float32(plain)
        expected = packed(IDS).logits
        assert torch.allclose(plain(IDS).logits, expected, atol=1e-5)
        for module in dequantized_modules(plain).values():
            module.exact = False
            module.weight.data = module.weight.data.float()
        assert not torch.allclose(plain(IDS).logits, expected, atol=1e-5)
        for module in dequantized_modules(plain).values():
            module.weight.data = module.weight.data.bfloat16()
    assert not computes_in_float32(plain)
    assert {name: tensor.dtype for name, tensor in plain.named_parameters()} == {
        name: dtype for name, (dtype, _) in before.items()
    }
    assert torch.equal(plain(IDS).logits, coarse)


@pytest.mark.parametrize("variant", ["Standard", "RankStabilized", "DoRA"])
def test_loss_and_gradients_are_those_of_the_packed_model(checkpoint: Path, variant: str) -> None:
    settings = {"rank": 4, "alpha": 8, "dropout": 0.0, "targetModules": "AllLinear", "variant": variant}
    lora = Lora.model_validate(settings)
    measured = []
    for dequantized in (False, True):
        model = load_quantized(checkpoint, "cpu")
        names = list(quantized_modules(model))
        if dequantized:
            dequantize_weights(model)
        torch.manual_seed(5)
        adapted = add_adapter(model, lora, names)
        with torch.no_grad():
            for name, value in adapted.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.02)
        loss = adapted(IDS, labels=IDS).loss
        loss.backward()
        gradients = {name: value.grad for name, value in adapted.named_parameters() if value.requires_grad}
        measured.append((loss.detach(), gradients))
    (loss, gradients), (other, others) = measured
    assert torch.allclose(loss, other, rtol=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], rtol=1e-4, atol=1e-7), name
