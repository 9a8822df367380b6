from __future__ import annotations

from pathlib import Path

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
from transformers import Gemma2Config, LlamaConfig


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


def test_floats_get_the_compute_type_and_integers_do_not_change() -> None:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    model.codes = torch.nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False)
    cast_model(model, torch.float32)
    assert (model.weight.dtype, model.codes.dtype) == (torch.float32, torch.uint8)
    assert quantized_modules(model) == {}
