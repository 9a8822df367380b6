"""Makes a causal language model of a text part whose family has none of its own: its layers, and an output matrix.

The trial of PREPARE compares its logits with those of the whole model, so a family that computes more than that is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING


def provide_text_class(config: Any) -> bool:
    """Return whether `AutoModelForCausalLM` builds a model of a text `config`; make its class if transformers has none.

    The layers are what `AutoModel` builds of the config. Call it in each process before a model is built or loaded.
    """
    kind = type(config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    if kind not in MODEL_MAPPING:
        return False
    layers: Any = MODEL_MAPPING[kind]  # one class, or several for some families
    if isinstance(layers, tuple) or not _is_text_alone(config):
        return False
    # transformers ignores a class for a config of its own otherwise.
    AutoModelForCausalLM.register(kind, _class_of(layers, kind), exist_ok=True)
    return True


def _is_text_alone(config: Any) -> bool:
    has_sizes = all(type(getattr(config, name, None)) is int for name in ("vocab_size", "hidden_size"))
    return has_sizes and not config.is_encoder_decoder and not config.sub_configs


def _class_of(layers: Any, kind: Any) -> Any:
    # They import torch's compiler, which PREPARE's and MERGE's start cannot spare the time for.
    from transformers import GenerationMixin, PreTrainedModel  # noqa: PLC0415 -- few models need them

    family = next(base for base in layers.__mro__[1:] if issubclass(base, PreTrainedModel))
    members = {
        "__module__": __name__,
        "config_class": kind,
        "base_model_prefix": "model",
        "_tied_weights_keys": {"lm_head.weight": "model.embed_tokens.weight"},
        "layers_class": layers,
    }
    return type(f"{layers.__name__}ForCausalLM", (_Head, family, GenerationMixin), members)


class _Head:
    """The layers of a text part, and an output matrix. The family's own class follows among the bases."""

    def __init__(self: Any, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # the family's own class follows
        self.model = self.layers_class(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **settings: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits (rows, positions, vocabulary), and with `labels` the loss in nats a token."""
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            **settings,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **settings
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=getattr(found, "cache", None))
