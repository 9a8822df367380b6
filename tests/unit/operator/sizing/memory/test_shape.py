from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.shape import (
    Dropouts,
    FamilyUnknownError,
    ModelRefusedError,
    ModelShape,
    ShapeUnknownError,
    Width,
    model_shape,
    width_of,
)
from finetune_trainer.model.adapter_targets import adapted_modules
from finetune_trainer.model.describe import inspect_base_model
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
    "cohere2",
    "stablelm",
    "gpt_neox",
    "phi",
}
# Members without which a family has experts, or layers whose size does not suit the other dimensions.
NEEDED: dict[str, dict[str, Any]] = {
    # Its output matrix reads as many values as the hidden size has.
    "helium": {"head_dim": 16},
    "cwm": {"bos_token_id": 1},
    "granitemoehybrid": {
        "num_local_experts": 0,
        "layer_types": ["attention"] * 3,
        "shared_intermediate_size": 176,
        "mamba_n_heads": 6,
    },
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {"biased": {"attention_bias": True, "mlp_bias": True}},
    "qwen3": {"biased": {"attention_bias": True}},
    "granite": {"biased": {"attention_bias": True, "mlp_bias": True}},
    "starcoder2": {"unbiased": {"use_bias": False}},
    "seed_oss": {"biased": {"attention_bias": False, "attention_out_bias": True}},
    "glm": {"unbiased": {"attention_bias": False}},
    "apertus": {"another activation": {"hidden_act": "silu"}},
    "cohere": {"normed": {"use_qk_norm": True}, "biased": {"attention_bias": True}},
    "stablelm": {
        "parallel": {"use_parallel_residual": True},
        "normed, biased": {"qk_layernorm": True, "use_qkv_bias": True},
    },
    "phi": {"normed": {"qk_layernorm": True}},
    "nemotron": {"biased": {"attention_bias": True, "mlp_bias": True}},
    "jais2": {"unbiased": {"attention_bias": False, "mlp_bias": False}},
    "cwm": {"listed": {"layer_types": ["full_attention"] * 3}},
    "gpt_neox": {"sequential": {"use_parallel_residual": False}, "unbiased": {"attention_bias": False}},
    "lfm2": {
        "convolutions": {"layer_types": ["conv", "full_attention", "conv"]},
        "listed attention": {"full_attn_idxs": [1]},
        "biased convolutions": {"layer_types": ["conv"] * 2 + ["full_attention"], "conv_bias": True},
        "own width": {"block_auto_adjust_ff_dim": False},
        "old names": {"block_ff_dim": 300, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.3},
    },
}


def cases() -> list[Any]:
    found = []
    for family in sorted(FAMILIES):
        settings = {**SMALL, **NEEDED.get(family, {})}
        if family in NO_HEAD_DIM:
            del settings["head_dim"]
        if family == "gpt_neox":
            del settings["num_key_value_heads"]
        variants = {"plain": {}, "tied": {"tie_word_embeddings": True}, **VARIANTS.get(family, {})}
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
    found = Counter(
        (name.rpartition(".")[2], module.in_features, module.out_features, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    expected: Counter[Any] = Counter()
    for count, one in (*shape.matrices, *((1, one) for one in shape.linears[-1:] if shape.last_unpacked)):
        expected[one.name, one.inputs, one.outputs, one.bias] += count
    assert found == expected
    assert shape.tied == (head.weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize(("family", "settings"), cases())
def test_the_quantized_matrices_are_those_that_the_trainer_quantizes(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The trainer asks transformers which modules become 4-bit, and accepts every family that sizing knows."""
    document = written(AutoConfig.for_model(family, **settings))
    (tmp_path / "config.json").write_text(json.dumps(document))
    base = inspect_base_model(tmp_path)
    shape = model_shape({**document, "architectures": [base.architecture]})
    assert base.parameters == shape.parameters
    expected: Counter[str] = Counter()
    for count, one in shape.matrices:
        expected[one.name] += count
    assert Counter(name.rpartition(".")[2] for name in base.quantized) == expected
    attention = sum(count for count, one in shape.matrices if one.in_attention)
    assert len(adapted_modules("AttentionOnly", base.quantized)) == attention


PUBLISHED: list[tuple[str, int, dict[str, Any]]] = [
    ("LFM2-1.2B", 1_170_340_608, {
        "model_type": "lfm2", "hidden_size": 2048, "block_ff_dim": 12288, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    }),
    ("phi-2", 2_779_683_840, {
        "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 51200,
    }),
    ("gpt-neox-20b", 20_554_567_680, {"model_type": "gpt_neox"}),
    ("stablelm-3b-4e1t", 2_795_443_200, {"model_type": "stablelm"}),
    ("c4ai-command-r-v01", 34_980_831_232, {"model_type": "cohere"}),
    ("Mistral-7B-v0.1", 7_241_732_096, {"model_type": "mistral"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "config"), [case[1:] for case in PUBLISHED], ids=[case[0] for case in PUBLISHED]
)
def test_a_published_model_has_its_published_number_of_parameters(
    parameters: int, config: dict[str, Any]
) -> None:
    assert model_shape(config).parameters == parameters


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"granitemoehybrid"}))
def test_a_config_that_names_only_its_family_has_the_familys_defaults(family: str) -> None:
    config = AutoConfig.for_model(family)
    shape = model_shape({"model_type": family})
    whole = model_shape(config.to_dict())
    assert shape == whole
    assert shape.hidden == config.hidden_size


KINDS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"model_type": "gemma2", "num_hidden_layers": 5}, (3, 4096)),
    ({"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, (0, 0)),
    ({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window_pattern": 3}, (5, 4096)),
    ({"model_type": "qwen2", "num_hidden_layers": 30, "use_sliding_window": True}, (2, 4096)),
    (
        {"model_type": "qwen2", "num_hidden_layers": 30, "use_sliding_window": True, "max_window_layers": 0},
        (30, 4096),
    ),
    ({"model_type": "qwen2", "num_hidden_layers": 30}, (0, 0)),
    ({"model_type": "cohere2", "num_hidden_layers": 9}, (7, 4096)),
    ({"model_type": "mistral", "layer_types": ["full_attention"] * 32}, (32, 4096)),
]


@pytest.mark.parametrize(("config", "expected"), KINDS)
def test_layers_with_a_window_are_counted_as_transformers_does(
    config: dict[str, Any], expected: tuple[int, int]
) -> None:
    shape = model_shape(config)
    assert (shape.sliding_layers, shape.sliding_window or 0) == expected
    listed = AutoConfig.for_model(**config).to_dict().get("layer_types") or []
    if config["model_type"] != "mistral":
        assert listed.count("sliding_attention") == shape.sliding_layers


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "granitemoehybrid", "num_local_experts": 0, "num_hidden_layers": 2,
          "layer_types": ["mamba", "attention"]}, "mamba"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "32"),
        ({"model_type": "qwen3", "layer_types": "full_attention"}, "layer_types"),
        ({"model_type": "qwen3", "layer_types": [1]}, "layer_types"),
        ({"model_type": "lfm2", "full_attn_idxs": "2"}, "full_attn_idxs"),
        ({"model_type": "lfm2", "full_attn_idxs": 40}, "full_attn_idxs"),
        ({"model_type": "lfm2", "block_ffn_dim_multiplier": 0}, "block_ffn_dim_multiplier"),
        ({"model_type": "llama", "hidden_act": "swiglu_oai"}, "hidden_act"),
        ({"model_type": "llama", "hidden_act": 3}, "hidden_act"),
        ({"model_type": "phi", "resid_pdrop": "0.1"}, "resid_pdrop"),
    ],
)  # fmt: skip
def test_a_member_that_sizing_cannot_use_is_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ShapeUnknownError, match=said):
        model_shape(config)


def test_members_that_change_memory_are_read() -> None:
    shape = model_shape({"model_type": "olmo", "clip_qkv": 8.0, "attention_dropout": 0.1})
    assert (shape.clips, shape.dropouts.scores) == (True, True)
    found = model_shape({"model_type": "starcoder2", "residual_dropout": 0.1, "embedding_dropout": 0.2})
    assert found.dropouts == Dropouts(attention=True, mlp=True, embedding=True)
    assert model_shape({"model_type": "starcoder2", "residual_dropout": 0.0}).dropouts == Dropouts()
    assert model_shape({"model_type": "phi"}).activation.saved > 0
    assert model_shape({"model_type": "llama", "hidden_act": "gelu_new"}).activation.saved > 0
    assert model_shape({"model_type": "llama"}).activation.saved == 0


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmoe", "granitemoe"])
def test_a_mixture_of_experts_is_no_refused_model_but_has_no_formula(family: str) -> None:
    with pytest.raises(ShapeUnknownError, match="model_type must be") as caught:
        model_shape(AutoConfig.for_model(family).to_dict())
    assert not isinstance(caught.value, ModelRefusedError)


@pytest.mark.parametrize(
    "member", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"]
)
def test_a_dense_family_with_experts_has_no_formula(member: str) -> None:
    with pytest.raises(FamilyUnknownError, match=member):
        model_shape({"model_type": "llama", member: 8})
    assert model_shape({"model_type": "llama", member: 1}) == model_shape({"model_type": "llama"})


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"model_type": "gptj"}, {"model_type": "t5"}])
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


def test_a_family_that_only_the_trainer_knows_is_told_apart() -> None:
    with pytest.raises(FamilyUnknownError, match="qwen3_5_text"):
        model_shape({"model_type": "qwen3_5_text"})
    with pytest.raises(ShapeUnknownError) as raised:
        model_shape({"model_type": "nobody_knows"})
    assert not isinstance(raised.value, FamilyUnknownError)


@pytest.mark.parametrize(
    ("config", "hidden"),
    [
        ({"hidden_size": 64}, 64),
        ({"text_config": {"hidden_size": 32}}, 32),
        ({"hidden_size": "large", "text_config": {"hidden_size": 32}}, 32),
        ({"hidden_size": True}, None),
        ({"hidden_size": 0}, None),
        ({}, None),
    ],
)
def test_the_width_of_any_model_is_read(config: dict[str, Any], hidden: int | None) -> None:
    expected = None if hidden is None else Width("someone", hidden)
    assert width_of({"model_type": "someone", **config}) == expected


TEXT = {"hidden_size": 640, "num_hidden_layers": 3, "intermediate_size": 2048, "num_attention_heads": 4}


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "qwen3"])
def test_a_model_that_also_sees_or_hears_has_the_shape_of_its_text_part(family: str) -> None:
    part = {"model_type": family, **TEXT, "architectures": ["OfNobody"]}
    whole = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": part,
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27},
    }
    assert model_shape(whole) == model_shape({"model_type": family, **TEXT})


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_ties_its_matrices(tied: bool) -> None:  # noqa: FBT001 -- a case
    part = {"model_type": "gemma3_text", **TEXT, "tie_word_embeddings": not tied}
    assert (
        model_shape({"model_type": "gemma3", "tie_word_embeddings": tied, "text_config": part}).tied is tied
    )


def test_a_text_part_without_a_formula_waits_for_its_trace() -> None:
    for part in ({"model_type": "qwen3_5_text"}, {"model_type": "qwen3_vl_text"}, {"hidden_size": 8}):
        with pytest.raises(FamilyUnknownError):
            model_shape({"model_type": "qwen3_5", "text_config": part})
