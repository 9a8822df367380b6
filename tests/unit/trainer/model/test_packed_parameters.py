"""The tensors of weight files that hold the matrices of experts and of Conv1D, for the layouts that transformers has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model import packed_parameters as module
from finetune_trainer.model.packed_parameters import PackedPart, kept_layers, packed_parameters
from finetune_trainer.model.small_config import small_document
from transformers import AutoConfig, AutoModelForCausalLM


def on_meta(kind: str, **members: Any) -> Any:
    document = small_document(AutoConfig.for_model(kind).to_dict())
    document.pop("model_type")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**document, **members}))


def test_each_expert_has_tensors_of_its_own_where_the_weight_files_do() -> None:
    found = {parameter.name: parameter for parameter in packed_parameters(on_meta("mixtral"))}
    both = found["model.layers.0.mlp.experts.gate_up_proj"]
    assert (both.experts, both.rows, both.columns, both.transposed) == (4, 256, 64, False)
    first = "model.layers.0.block_sparse_moe.experts.1"
    assert PackedPart(f"{first}.w1.weight", 1, 0, 128) in both.parts
    assert PackedPart(f"{first}.w3.weight", 1, 128, 256) in both.parts
    assert len(both.parts) == 8
    down = found["model.layers.1.mlp.experts.down_proj"]
    assert PackedPart("model.layers.1.block_sparse_moe.experts.3.w2.weight", 3, 0, 64) in down.parts
    assert len(found) == 4


def test_one_tensor_holds_all_experts_where_the_weight_files_do() -> None:
    found = {parameter.name: parameter for parameter in packed_parameters(on_meta("gpt_oss"))}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert found[name].parts == (PackedPart(name, None, 0, found[name].rows),)
    assert found[name].transposed
    assert found[name].shape(found[name].parts[0]) == (4, 64, 256)


def test_a_conv1d_is_one_matrix_with_a_row_for_each_input() -> None:
    found = {parameter.name: parameter for parameter in packed_parameters(on_meta("gpt2"))}
    fused = found["transformer.h.0.attn.c_attn.weight"]
    assert (fused.experts, fused.rows, fused.columns, fused.transposed) == (1, 64, 192, True)
    assert fused.parts[0].module == "transformer.h.0.attn.c_attn"
    assert fused.shape(fused.parts[0]) == (64, 192)


def test_a_dense_model_has_no_packed_parameters_and_keeps_no_layer() -> None:
    model = on_meta("llama")
    assert packed_parameters(model) == ()
    assert kept_layers(model) == frozenset()


def test_a_convolution_is_no_expert() -> None:
    assert not [one for one in packed_parameters(on_meta("falcon_h1")) if "conv" in one.name]


def test_layers_that_choose_experts_and_those_whose_weights_are_read_are_kept() -> None:
    assert "model.layers.0.mlp.shared_expert_gate" in kept_layers(on_meta("qwen2_moe"))
    assert not [name for name in kept_layers(on_meta("qwen2_moe")) if "proj" in name]
    assert any(name.endswith("mixer.dt_proj") for name in kept_layers(on_meta("mamba")))


def test_a_layout_that_is_not_rows_of_experts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(_model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.transpose(-1, -2).contiguous() for name, value in state.items()}

    monkeypatch.setattr(module, "revert_weight_conversion", mixed)
    with pytest.raises(StageError, match="must stand in the weight files as rows") as caught:
        packed_parameters(on_meta("gpt_oss"))
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


def test_blocks_that_would_reach_into_the_next_expert_are_refused() -> None:
    with pytest.raises(StageError, match="multiple of 64 weights"):
        packed_parameters(on_meta("gpt_oss", intermediate_size=7, hidden_size=6))
