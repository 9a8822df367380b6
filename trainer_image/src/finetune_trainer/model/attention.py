"""Chooses the attention of a model on its device, by the policy, and applies it."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from finetune_trainer.model.attention_policy import AttentionChoice, AttentionFacts, choose_attention


def attention_of(config: Any, device: str, *, packed: bool) -> AttentionChoice:
    """Return the attention of a model with this `config` on `device` ("cuda" or "cpu")."""
    return choose_attention(attention_facts(config, device, packed=packed))


def attention_facts(
    config: Any, device: str, *, packed: bool, capability: tuple[int, int] | None = None
) -> AttentionFacts:
    """Return what the choice depends on. Without a `capability`, the visible GPU is asked for its own."""
    text = config.get_text_config()
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    on_gpu = device == "cuda"
    query, value = _head_widths(text)
    major, minor = str(torch.__version__).split(".")[:2]
    return AttentionFacts(
        device=device,
        packed=packed,
        capped=getattr(text, "attn_logit_softcapping", None) is not None,
        # transformers decides by it, too.
        fused=bool(getattr(architecture, "_supports_sdpa", False)),
        query_width=query,
        value_width=value,
        torch=(int(major), int(minor)),
        capability=capability or (torch.cuda.get_device_capability() if on_gpu else None),
        rocm=torch.version.hip is not None,
    )


def allow_kernels(choice: AttentionChoice) -> None:
    """Let torch's fused attention use the kernels that `choice` allows, in the whole process."""
    torch.backends.cuda.enable_cudnn_sdp(choice.cudnn)


def _head_widths(config: Any) -> tuple[int, int]:
    """Return the values of a head in queries and in values, of the layer with the widest ones.

    Latent attention has two widths. Layers may differ, as in Gemma 4, whose config then has no width of its own.
    """
    try:
        return _layer_widths(config)
    except AmbiguousGlobalPerLayerAttributeError:
        return max(_layer_widths(layer) for layer in config.per_layer_config)


def _layer_widths(config: Any) -> tuple[int, int]:
    heads = getattr(config, "num_attention_heads", None) or 1
    plain = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    parts = getattr(config, "qk_nope_head_dim", None), getattr(config, "qk_rope_head_dim", None)
    query = plain if None in parts else sum(part or 0 for part in parts)
    return query, getattr(config, "v_head_dim", None) or plain
