from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.shape import ModelShape, ShapeUnknownError, model_shape
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

# Dimensions that differ from each other and from every default, so that none can stand in for another.
SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
NO_HEAD_DIM = {
    "qwen2",
    "phi3",
    "smollm3",
    "olmo",
    "olmo2",
    "olmo3",
    "granite",
    "starcoder2",
    "exaone4",
    "falcon",
}
BIASED: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"attention_bias": True},
    "granite": {"attention_bias": True, "mlp_bias": True},
    "starcoder2": {"use_bias": False},
    "seed_oss": {"attention_bias": False, "attention_out_bias": True},
    "glm": {"attention_bias": False},
}
FALCON: dict[str, dict[str, Any]] = {
    "multi-query": {"multi_query": True},
    "multi-head": {"multi_query": False},
    "new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "new, one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "sequential": {"parallel_attn": False},
    "bias": {"bias": True},
}


def cases() -> list[Any]:
    found = []
    for family in sorted(FAMILIES):
        settings = dict(SMALL)
        if family in NO_HEAD_DIM:
            del settings["head_dim"]
        variants: dict[str, dict[str, Any]] = {"plain": {}, "tied": {"tie_word_embeddings": True}}
        if family == "falcon":
            del settings["intermediate_size"], settings["num_key_value_heads"]
            variants |= FALCON
        if family in BIASED:
            variants["biased"] = BIASED[family]
        found += [
            pytest.param(family, {**settings, **variant}, id=f"{family}, {name}")
            for name, variant in variants.items()
        ]
    return found


def written(config: Any) -> dict[str, Any]:
    """Return the config.json that transformers writes, without defaults."""
    document: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return document


@pytest.mark.parametrize(("family", "settings"), cases())
def test_a_shape_is_that_of_the_model_that_transformers_builds(family: str, settings: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = model_shape(written(config))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    found = sorted(
        (name.rpartition(".")[2], module.in_features, module.out_features, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    expected = [(one.name, one.inputs, one.outputs, one.bias) for one in shape.linears]
    assert found == sorted(expected * shape.layers)
    assert shape.tied == (head.weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_config_that_names_only_its_family_has_the_familys_defaults(family: str) -> None:
    config = AutoConfig.for_model(family)
    shape = model_shape({"model_type": family})
    whole = model_shape(config.to_dict())
    assert shape == whole
    assert shape.hidden == config.hidden_size


def test_a_nested_text_config_is_read() -> None:
    config = AutoConfig.for_model("gemma3")
    assert model_shape(config.to_dict()) == model_shape(config.text_config.to_dict())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmoe", "granitemoe"])
def test_a_mixture_of_experts_is_rejected(family: str) -> None:
    with pytest.raises(ShapeUnknownError, match="mixture of experts"):
        model_shape(AutoConfig.for_model(family).to_dict())


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"model_type": "mamba"}, {"model_type": "t5"}])
def test_an_unknown_family_is_rejected_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(ShapeUnknownError, match="model_type must be"):
        model_shape(config)


@given(
    member=st.sampled_from(["hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers", "head_dim"]),
    value=st.one_of(
        st.integers(max_value=0), st.floats(), st.text(), st.booleans(), st.lists(st.integers()),
        st.integers(min_value=2**41),
    ),
)  # fmt: skip
def test_a_member_that_is_no_size_is_rejected_by_name(member: str, value: Any) -> None:
    with pytest.raises(ShapeUnknownError, match=member):
        model_shape({"model_type": "llama", member: value})


@given(config=st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
       lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)))  # fmt: skip
def test_any_json_gives_a_shape_or_an_error(config: dict[str, Any]) -> None:
    try:
        shape = model_shape({**config, "model_type": "qwen3"})
    except ShapeUnknownError:
        return
    assert isinstance(shape, ModelShape)
