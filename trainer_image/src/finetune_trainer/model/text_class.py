"""Makes a causal language model of a text part whose family has none of its own: its layers, and an output matrix.

The trial of PREPARE compares its logits with those of the whole model, so a family that computes more than that is refused.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_MAPPING,
)


def provide_text_class(config: Any) -> bool:
    """Return whether `AutoModelForCausalLM` builds a model of a text `config`; make its class if transformers has none.

    The layers are what `AutoModel` builds of the config, or the family's only class for it. Call it in each process before a
    model is built or loaded.
    """
    kind = type(config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    if not _is_text_alone(config):
        return False
    made = _listed_elsewhere(kind)
    if made is None:
        layers = _layers(config)
        if layers is None:
            return False
        made = _class_of(layers, kind)
    # transformers ignores a class for a config of its own otherwise.
    AutoModelForCausalLM.register(kind, made, exist_ok=True)
    return True


def _listed_elsewhere(kind: Any) -> Any:
    """Return a language model that transformers lists among those with other senses alone; None if it has none."""
    found: Any = MODEL_FOR_MULTIMODAL_LM_MAPPING.get(kind, None)
    return found if str(getattr(found, "__name__", "")).endswith("ForCausalLM") else None


def _layers(config: Any) -> Any:
    """Return the class of the layers; None unless there is one that embeds tokens itself."""
    kind = type(config)
    listed: Any = MODEL_MAPPING.get(kind, None)  # one class, or several for some families
    if listed is not None:
        return None if isinstance(listed, tuple) else listed
    # These are built as parts of their family's models alone.
    name = kind.__module__.replace(".configuration_", ".modeling_")
    if name == kind.__module__:
        return None
    module = importlib.import_module(name)
    found = [value for value in vars(module).values() if _reads_text(value, kind, name)]
    if len(found) != 1:
        return None
    with torch.device("meta"):
        embedding = getattr(found[0](config), "embed_tokens", None)
    return found[0] if isinstance(embedding, torch.nn.Embedding) else None


def _reads_text(value: Any, kind: Any, module: str) -> bool:
    """Return whether a member of a module is a class of layers of configs of class `kind`."""
    return (
        isinstance(value, type)
        and value.__module__ == module
        and value.__name__.endswith("Model")
        and not value.__name__.endswith("PreTrainedModel")
        and getattr(value, "config_class", None) is kind
    )


def _is_text_alone(config: Any) -> bool:
    """Return whether a config is of one decoder, none of whose layers attends to another sense."""
    has_sizes = all(type(getattr(config, name, None)) is int for name in ("vocab_size", "hidden_size"))
    attends = bool(getattr(config, "cross_attention_layers", None))
    return has_sizes and not attends and not config.is_encoder_decoder and not config.sub_configs


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
        # transformers reads it in the source of a class's module.
        "_can_set_experts_implementation_cached_value": layers._can_set_experts_implementation(),  # noqa: SLF001 -- same
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
