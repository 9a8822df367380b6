"""Takes the text model out of a loaded model that also sees or hears."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from finetune_trainer.model.text_part import find_text_part, has_other_senses

_log = logging.getLogger(__name__)
_TOKENS = 2


def text_model_of(whole: Any) -> Any:
    """Return the text model of `whole`, which shares its weights. Raises StageError as `text_part.find_text_part` does."""
    part = find_text_part(whole.config)
    if part is None:
        return whole
    # Buffers are not in the weights: rotary frequencies, for example, must be computed here.
    with init_empty_weights(include_buffers=False):
        text: Any = AutoModelForCausalLM.from_config(
            part.config,
            dtype=whole.dtype,
            attn_implementation=part.config._attn_implementation,  # noqa: SLF001 -- transformers has no public name
        )
    held = whole.state_dict()
    text.load_state_dict({name: held[part.whole_name(name)] for name in text.state_dict()}, assign=True)
    text.tie_weights()
    text.generation_config = whole.generation_config
    return text.eval()


@torch.no_grad()
def runnable_on_text(model: Any) -> Any:
    """Return `model`, or its text model if the class of the whole model cannot run on text alone."""
    if not has_other_senses(model.config):
        return model
    try:
        model(input_ids=torch.arange(1, 1 + _TOKENS)[None], use_cache=False)
    except Exception as error:  # noqa: BLE001 -- any code of transformers runs here
        _log.warning(
            "%s of transformers cannot run on text alone (%s: %s), so its text part runs",
            type(model).__name__,
            type(error).__name__,
            str(error)[:200],
        )
        return text_model_of(model)
    return model
