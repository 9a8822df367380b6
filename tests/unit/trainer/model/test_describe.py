from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import inspect_base_model

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def test_linear_layers_but_not_the_head_become_4_bit(tmp_path: Path) -> None:
    base = inspect_base_model(write(tmp_path))
    assert base.architecture == "LlamaForCausalLM"
    assert len(base.quantized) == 7
    assert "lm_head" not in base.quantized
    assert base.parameter_shapes["model.layers.0.mlp.up_proj.weight"] == (16, 8)


def test_tied_weights_and_old_buffers_may_be_missing_or_present(tmp_path: Path) -> None:
    base = inspect_base_model(write(tmp_path))
    assert "lm_head.weight" in base.optional
    assert base.ignores("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not base.ignores("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "unheard_of"}, Reason.UNSUPPORTED_MODEL),
        ({"hidden_size": "wide"}, Reason.INVALID_MODEL),
        ({"num_hidden_layers": 0}, Reason.UNSUPPORTED_MODEL),
    ],
)
def test_a_config_that_cannot_be_trained_has_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(StageError) as caught:
        inspect_base_model(write(tmp_path, **changes))
    assert caught.value.reason is reason


def test_a_model_whose_towers_need_a_package_is_refused_with_its_name(tmp_path: Path) -> None:
    """Its config is valid, so the reason is not InvalidModel."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma3n"}')
    with pytest.raises(StageError, match=r"found that it needs .*timm; choose another model") as caught:
        inspect_base_model(tmp_path)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("settings", [None, {}])
def test_an_empty_quantization_config_counts_as_absent(tmp_path: Path, settings: Any) -> None:
    base = inspect_base_model(write(tmp_path, quantization_config=settings))
    assert len(base.quantized) == 7


def test_the_description_has_tied_tensors_and_the_bounds_of_ids_and_positions(tmp_path: Path) -> None:
    base = inspect_base_model(write(tmp_path, max_position_embeddings=77))
    assert base.tied == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert (base.embedding_rows, base.positions, base.context) == (32, None, 77)
    assert inspect_base_model(write(tmp_path, tie_word_embeddings=False)).tied == ()


def test_a_mistral_with_kinds_of_layers_is_accepted_as_the_ministral_that_it_is(tmp_path: Path) -> None:
    """transformers builds another architecture than the config declares."""
    changes = {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "layer_types": ["full_attention"],
        "head_dim": 4,
    }
    assert inspect_base_model(write(tmp_path, **changes)).architecture == "MinistralForCausalLM"


def test_layers_that_do_not_fit_together_are_found_before_any_weight(tmp_path: Path) -> None:
    changes = {"model_type": "phi", "architectures": ["PhiForCausalLM"], "partial_rotary_factor": 0.8}
    with pytest.raises(StageError, match="fit together"):
        inspect_base_model(write(tmp_path, **changes))
    assert inspect_base_model(tmp_path, rehearsed=True).architecture == "PhiForCausalLM"
