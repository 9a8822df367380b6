"""Operator and trainer refuse the same models by their config.json (contract/refusals.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_operator.contract import refusals as operator
from finetune_operator.contract.model_types import NATIVE_TYPES
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.shape import ModelRefusedError, ShapeUnknownError, model_shape
from finetune_trainer.contract import refusals as trainer
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model import support
from finetune_trainer.model.describe import inspect_base_model
from finetune_trainer.model.support import is_native, reject_config, reject_files, reject_structure
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from tests.support.repository import ROOT

LISTED = json.loads((ROOT / "contract" / "refusals.json").read_text("utf-8"))
CASES = [(case["config"], case["rule"]) for case in LISTED["cases"]]
NAMES = {
    "quantizedMembers": "QUANTIZED_MEMBERS",
    "quantizedFiles": "QUANTIZED_FILES",
    "dequantized": "DEQUANTIZED",
    "quantizedTensors": "QUANTIZED_TENSORS",
    "remoteCode": "REMOTE_CODE",
    "otherInputs": "OTHER_INPUTS",
    "wrapped": "WRAPPED",
    "encoderDecoder": "ENCODER_DECODER",
    "causalHead": "CAUSAL_HEAD",
    "wrappedHead": "WRAPPED_HEAD",
    "textPart": "TEXT_PART",
    "otherLinearLayers": "OTHER_LINEAR_LAYERS",
    "weightReaders": "WEIGHT_READERS",
}


@pytest.mark.parametrize("side", [operator, trainer], ids=["operator", "trainer"])
def test_both_sides_hold_the_list_of_the_contract(side: Any) -> None:
    for name, constant in NAMES.items():
        held = getattr(side, constant)
        assert (list(held) if isinstance(held, tuple) else held) == LISTED[name], constant
    assert {rule: {"must": must, "remedy": remedy} for rule, (must, remedy) in side.RULES.items()} == LISTED[
        "rules"
    ]
    assert LISTED.keys() == {"description", "rules", "cases", "nativeTypes", *NAMES}


def test_the_native_types_are_those_of_the_trainers_transformers() -> None:
    listed = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    found = sorted(kind for kind in listed if is_native(kind))
    assert found == LISTED["nativeTypes"], (
        "write these into contract/refusals.json and contract/model_types.py"
    )
    assert sorted(NATIVE_TYPES) == found
    assert FAMILIES.keys() <= NATIVE_TYPES


def test_every_rule_has_a_case() -> None:
    assert {rule for _, rule in CASES} == {None, *LISTED["rules"]}


@pytest.mark.parametrize(("config", "rule"), CASES)
def test_the_operator_refuses_what_the_contract_lists(config: dict[str, Any], rule: str | None) -> None:
    """Sizing may also not know the family; then a refusal still comes first."""
    if rule is None:
        if (config.get("text_config") or config)["model_type"] in FAMILIES:
            model_shape(config)
        else:
            with pytest.raises(ShapeUnknownError, match="supported family"):
                model_shape(config)
        return
    with pytest.raises(ModelRefusedError) as caught:
        model_shape(config)
    assert caught.value.rule == rule


@pytest.mark.parametrize(("config", "rule"), CASES)
def test_the_trainer_refuses_what_the_contract_lists(config: dict[str, Any], rule: str | None) -> None:
    if rule is None:
        reject_config(config)
        return
    with pytest.raises(StageError) as caught:
        reject_config(config)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
    must, remedy = trainer.RULES[rule]
    assert caught.value.message.startswith(f"{must}, found ")
    assert caught.value.message.endswith(f"; {remedy}")


@given(
    st.dictionaries(
        st.sampled_from(
            ["architectures", "auto_map", "quantization_config", "text_config", "vision_config", "num_experts",
             "is_encoder_decoder", "model_type"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers(-1, 9) | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
            max_leaves=4,
        ),
    ),
    st.booleans(),
)  # fmt: skip
def test_any_config_has_the_same_answer_on_both_sides(config: dict[str, Any], known: bool) -> None:  # noqa: FBT001 -- drawn
    one, other = operator.refusal(config, known=known), trainer.refusal(config, known=known)
    assert (one and (one.rule, one.message)) == (other and (other.rule, other.message))


@pytest.mark.parametrize("kind", [kind for kind in LISTED["otherLinearLayers"] if is_native(kind)])
def test_a_listed_type_is_refused_for_the_structure_that_transformers_builds(kind: str) -> None:
    """The list is not needed by the trainer: it would find the same in the built model."""
    config = AutoConfig.for_model(kind)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(StageError, match="embeddings, linear layers and experts"):
        reject_structure(model, {})


def test_files_and_tensors_of_a_quantizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    reject_files(tmp_path)
    for name in LISTED["quantizedFiles"]:
        (tmp_path / name).write_text("{}")
        with pytest.raises(StageError, match=name):
            reject_files(tmp_path)
        assert operator.refused_file([name, "config.json"]) is not None
        (tmp_path / name).unlink()
    for ending in LISTED["quantizedTensors"]:
        for side in (operator, trainer):
            found = side.refused_tensor(["a.weight", f"a.b{ending}"])
            assert found is not None
            assert ending in found.message
    assert operator.refused_tensor(["model.norm.weight", "lm_head.bias"]) is None


def test_code_of_a_repository_is_ignored_for_a_type_that_transformers_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("WARNING", logger=support.__name__):
        reject_config({"model_type": "llama", "auto_map": {"AutoConfig": "configuration.Own"}})
    assert "auto_map" in caplog.text
    caplog.clear()
    reject_config({"model_type": "llama"})
    assert caplog.text == ""


def test_underscores_and_cases_of_an_architecture_are_no_difference(tmp_path: Path) -> None:
    config = {
        "model_type": "ernie4_5",
        "architectures": ["Ernie4_5_ForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
        "vocab_size": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert inspect_base_model(tmp_path).parameters == model_shape(config).parameters
    other = {**config, "architectures": ["Ernie4_5_MoeForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(StageError, match="Ernie4_5_MoeForCausalLM"):
        inspect_base_model(tmp_path)
    with pytest.raises(ModelRefusedError, match="Ernie4_5_MoeForCausalLM"):
        model_shape(other)


def test_a_family_with_experts_by_default_has_no_formula_unless_the_config_has_none() -> None:
    dense = {"model_type": "granitemoehybrid", "layer_types": ["attention"] * 32}
    with pytest.raises(ShapeUnknownError, match="num_local_experts"):
        model_shape(dense)
    assert model_shape({**dense, "num_local_experts": 0}).layers == 32


def test_a_refusal_is_no_unknown_size() -> None:
    with pytest.raises(ShapeUnknownError) as caught:
        model_shape({"model_type": "gptj"})
    assert not isinstance(caught.value, ModelRefusedError)
