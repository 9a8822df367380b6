"""The text part of a model that also sees or hears is found by structure, in every layout of the weight files."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.small_config import small_document
from finetune_trainer.model.text_part import TextPart, auto_class, find_text_part, has_other_senses
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM


def small(kind: str) -> Any:
    document = small_document(AutoConfig.for_model(kind).to_dict())
    document.pop("model_type")
    return AutoConfig.for_model(kind, **{**document, "architectures": None})


@cache
def part(kind: str) -> TextPart:
    found = find_text_part(small(kind))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "name", "own"),
    [
        ("gemma3", "language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("gemma3", "model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("gemma3", "language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("gemma3", "language_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("gemma3", "language_model.lm_head.weight", "lm_head.weight"),
        ("gemma3", "lm_head.weight", "lm_head.weight"),
        ("gemma3", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", None),
        ("gemma3", "multi_modal_projector.mm_soft_emb_norm.weight", None),
        ("gemma3", "nobody.knows", None),
        ("qwen3_5", "model.language_model.norm.weight", "model.norm.weight"),
        ("qwen3_5", "mtp.layers.0.mlp.up_proj.weight", None),
        ("qwen3_5", "model.visual.blocks.0.mlp.linear_fc1.weight", None),
        ("llama4", "language_model.lm_head.weight", "lm_head.weight"),
        (
            "llama4",
            "language_model.model.layers.0.feed_forward.experts.down_proj",
            "model.layers.0.feed_forward.experts.down_proj",
        ),
        (
            "qwen3_5_moe",
            "model.language_model.layers.0.mlp.experts.2.down_proj.weight",
            "model.layers.0.mlp.experts.2.down_proj.weight",
        ),
        ("voxtral", "language_model.model.norm.weight", "model.norm.weight"),
        ("voxtral", "audio_tower.conv1.weight", None),
        ("qwen3_vl", "model.language_model.norm.weight", "model.norm.weight"),
    ],
)
def test_a_tensor_of_the_weight_files_has_a_name_in_the_text_model(
    kind: str, name: str, own: str | None
) -> None:
    assert part(kind).text_name(name) == own


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5", "qwen3_vl"])
def test_the_text_model_is_built_of_its_own_config(kind: str) -> None:
    found = part(kind)
    document = found.document()
    again = AutoConfig.for_model(document.pop("model_type"), **document)
    assert again.hidden_size == found.model.config.hidden_size
    assert found.document()["architectures"] == [type(found.model).__name__]
    assert found.others > 0


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_decides_whether_embedding_and_head_are_one(tied: bool) -> None:  # noqa: FBT001 -- a case
    config = small("qwen3_5")
    config.tie_word_embeddings, config.text_config.tie_word_embeddings = tied, not tied
    found = find_text_part(config)
    assert found is not None
    assert found.config.tie_word_embeddings is tied
    assert config.text_config.tie_word_embeddings is not tied


def test_a_text_model_has_no_text_part() -> None:
    config = small("llama")
    assert not has_other_senses(config)
    assert find_text_part(config) is None
    assert auto_class(config) is AutoModelForCausalLM


def test_a_text_model_with_the_config_of_its_family_is_no_part() -> None:
    config = small("qwen3_5")
    assert auto_class(config) is AutoModelForMultimodalLM
    config.architectures = ["Qwen3_5ForCausalLM"]
    assert not has_other_senses(config)


@pytest.mark.parametrize("kind", ["kosmos-2", "mllama"])
def test_a_part_that_is_no_language_model_is_refused(kind: str) -> None:
    with pytest.raises(StageError, match="choose the family's text model") as caught:
        find_text_part(small(kind))
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
