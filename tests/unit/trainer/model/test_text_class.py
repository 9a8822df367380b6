"""A family without a language model of its text part gets one of its layers and an output matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.model.small_config import small_document
from finetune_trainer.model.text_class import provide_text_class
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, LlamaConfig, SiglipVisionConfig


def text_config(kind: str) -> Any:
    config = AutoConfig.for_model(kind)
    document = small_document(config.to_dict())
    document.pop("model_type")
    return AutoConfig.for_model(kind, **document).get_text_config()


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_vl_moe"])
def test_the_class_computes_logits_and_a_loss(kind: str) -> None:
    config = text_config(kind)
    assert provide_text_class(config)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        found = model(input_ids=ids, labels=ids)
        last = model(input_ids=ids, logits_to_keep=2)
    assert found.logits.shape == (1, 9, config.vocab_size)
    expected = torch.nn.functional.cross_entropy(found.logits[0, :-1], ids[0, 1:])
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(last.logits, found.logits[:, -2:], atol=1e-6)
    assert type(model).__name__.endswith("ForCausalLM")


def test_a_language_model_that_is_listed_with_other_senses_alone_is_found() -> None:
    config = text_config("mistral4")
    assert provide_text_class(config)
    assert type(AutoModelForCausalLM.from_config(config)).__name__ == "Mistral4ForCausalLM"


def test_layers_that_only_the_whole_model_builds_are_found() -> None:
    config = text_config("paddleocr_vl")
    assert provide_text_class(config)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model.model).__name__ == "PaddleOCRTextModel"


def test_experts_of_a_made_class_may_compute_in_any_way() -> None:
    config = text_config("qwen3_vl_moe")
    assert provide_text_class(config)
    assert AutoModelForCausalLM.from_config(config, experts_implementation="eager") is not None


def test_a_class_is_made_once() -> None:
    config = text_config("qwen3_vl")
    assert provide_text_class(config)
    first = type(AutoModelForCausalLM.from_config(config))
    assert provide_text_class(text_config("qwen3_vl"))
    assert type(AutoModelForCausalLM.from_config(config)) is first


def test_a_family_with_a_class_keeps_it() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8
    )
    assert provide_text_class(config)
    assert type(AutoModelForCausalLM.from_config(config)).__name__ == "LlamaForCausalLM"
    assert provide_text_class(BertConfig())


def test_what_reads_no_text_gets_no_class() -> None:
    assert not provide_text_class(SiglipVisionConfig())
