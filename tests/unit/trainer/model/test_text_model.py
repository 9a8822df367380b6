"""The text model of a loaded whole model computes the same logits, and stands in where the whole class cannot run."""

from __future__ import annotations

import torch
from finetune_trainer.model.text_model import runnable_on_text, text_model_of
from finetune_trainer.proof.small_run import small_model
from transformers import AutoConfig

IDS = torch.arange(3, 20)[None]


def test_the_text_model_computes_what_the_whole_model_does() -> None:
    whole = small_model(AutoConfig.for_model("gemma3"))
    text = text_model_of(whole)
    assert type(text).__name__ == "Gemma3ForCausalLM"
    with torch.no_grad():
        difference = (text(input_ids=IDS).logits - whole(input_ids=IDS).logits).abs().max()
    assert float(difference) < 1e-4
    held, own = (model.get_input_embeddings().weight for model in (whole, text))
    assert held.data_ptr() == own.data_ptr()


def test_a_model_that_runs_on_text_is_itself() -> None:
    whole = small_model(AutoConfig.for_model("gemma3"))
    assert runnable_on_text(whole) is whole
    alone = small_model(AutoConfig.for_model("llama"))
    assert runnable_on_text(alone) is alone
    assert text_model_of(alone) is alone


def test_a_class_that_needs_images_is_replaced_by_its_text_model() -> None:
    whole = small_model(AutoConfig.for_model("gemma3"))

    def forward(*_inputs: object, **_settings: object) -> None:
        raise AttributeError("no attribute 'image_outputs'")

    whole.forward = forward
    assert type(runnable_on_text(whole)).__name__ == "Gemma3ForCausalLM"
