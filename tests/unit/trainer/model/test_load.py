from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.load import (
    attention_implementation,
    cast_model,
    compute_dtype,
    load_quantized,
    quantized_modules,
)
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, LlamaConfig

from tests.support import workspaces


def test_gpus_compute_in_bf16_and_cpus_in_float32() -> None:
    assert (compute_dtype("cuda"), compute_dtype("cpu")) == (torch.bfloat16, torch.float32)


def test_a_gpu_that_is_not_visible_has_no_fallback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StageError) as caught:
        load_quantized(tmp_path, "cuda")
    assert caught.value.reason is Reason.GPU_NOT_VISIBLE


def test_only_a_model_without_a_soft_cap_gets_the_fused_attention() -> None:
    assert attention_implementation(LlamaConfig()) == "sdpa"
    assert attention_implementation(Gemma2Config()) == "eager"


def test_the_norms_of_dora_come_from_the_weight_that_is_multiplied_with(tmp_path: Path) -> None:
    """peft dequantizes to the type of the quantization state."""
    workspaces.write_base(tmp_path / "base", "llama")
    workspaces.prepare(tmp_path / "workspace", tmp_path / "base")
    model = load_quantized(WorkspaceLayout(tmp_path / "workspace").quantized_model, "cpu")
    config = LoraConfig(use_dora=True, target_modules=["q_proj"])
    layer: Any = get_peft_model(model, config).get_submodule(
        "base_model.model.model.layers.0.self_attn.q_proj"
    )
    with torch.no_grad():
        weight = layer.base_layer(torch.eye(64)).T
    magnitudes = layer.lora_magnitude_vector["default"].weight
    assert torch.allclose(magnitudes, weight.norm(dim=1), rtol=1e-6)


def test_floats_get_the_compute_type_and_integers_do_not_change() -> None:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    model.codes = torch.nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False)
    cast_model(model, torch.float32)
    assert (model.weight.dtype, model.codes.dtype) == (torch.float32, torch.uint8)
    assert quantized_modules(model) == {}
