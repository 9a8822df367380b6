"""Dequantized weights give the values of the packed ones, and leave no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from finetune_trainer.evaluation import unpacked
from finetune_trainer.evaluation.unpacked import unpacked_on_cpu


@pytest.fixture
def model() -> Any:
    torch.manual_seed(1)
    layer: Any = Linear4bit(  # type: ignore[no-untyped-call]  # bitsandbytes has no annotations
        64, 32, bias=True, compute_dtype=torch.float32, quant_type="nf4", quant_storage=torch.uint8
    )
    # As the loaded model of a stage: bitsandbytes would repack the weight on CPUs with AVX512-BF16.
    layer.support_avx512bf16_for_cpu = False
    layer.load_state_dict({"weight": torch.randn(32, 64), "bias": torch.randn(32)})
    return torch.nn.Sequential(layer.to("cpu")).eval()


@torch.no_grad()
def test_a_small_model_multiplies_with_the_same_values(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(3, 64)
    packed = model(states)
    with unpacked_on_cpu(model):
        monkeypatch.setattr(Linear4bit, "forward", lambda *_: pytest.fail("the packed weight was used"))
        assert torch.allclose(model(states), packed, atol=1e-5)
    monkeypatch.undo()
    assert torch.equal(model(states), packed)


@torch.no_grad()
def test_a_large_model_stays_packed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "MAXIMUM_BYTES", 64 * 32 * 4 - 1)
    with unpacked_on_cpu(model):
        assert "forward" not in vars(model[0])


def test_an_error_leaves_the_model_packed(model: Any) -> None:
    def fail() -> None:
        with unpacked_on_cpu(model):
            assert "forward" in vars(model[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "forward" not in vars(model[0])
