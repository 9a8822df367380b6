"""Models that are refused by their config.json: the same list as the trainer's (contract/refusals.json)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RULES: Mapping[str, tuple[str, str]] = {
    "QuantizedAlready": ("the base must be in 16 or 32 bits", "choose the original model"),
    "RemoteCode": (
        "the model must be of an architecture in transformers, because code from a repository is never run",
        "choose another model",
    ),
    "OtherInputs": ("the model must take text alone", "choose the family's text model"),
    "NoCausalHead": ("the model must be a causal language model", "choose a model for text generation"),
    "OtherLinearLayers": (
        "every projection must be a plain linear layer, because no other is quantized",
        "choose another model",
    ),
    "WeightReaders": (
        "every linear layer must keep its weight while it runs, because an adapter changes only its product",
        "choose another model",
    ),
}
"""What must be, and the remedy."""
QUANTIZED_MEMBERS = ("quantization_config", "compression_config", "quantization", "quip_params", "aqlm")
DEQUANTIZED = {"gpt_oss": "mxfp4"}
"""Quantizers of model types that PREPARE dequantizes, because there is no other checkpoint."""
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files that AutoGPTQ, AutoAWQ and NVIDIA ModelOpt write next to the weights."""
QUANTIZED_TENSORS = (
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
    ".input_scale",
    ".SCB",
    ".quant_map",
    ".absmax",
)
"""Endings of tensors that accompany packed weights: GPTQ, AWQ, compressed-tensors, fp8, bitsandbytes."""
REMOTE_CODE = "auto_map"
OTHER_INPUTS = ("vision", "visual", "image", "audio", "speech", "video")
WRAPPED = ("text_config", "llm_config", "language_config", "thinker_config")
"""Members in which a multimodal model nests the config of its text model."""
ENCODER_DECODER = "is_encoder_decoder"
CAUSAL_HEAD = "CausalLM|LMHead|Decoder"
WRAPPED_HEAD = "Generation|Text2Text"
"""What the class of a model with a text part may also be called."""
TEXT_PART = "text_config"
"""The member with the config of a text part that can be trained alone."""
OTHER_LINEAR_LAYERS = ("dory", "falcon", "xlnet")
"""Model types whose projections are subclasses of a linear layer."""
WEIGHT_READERS = ("rwkv",)
"""Model types whose layers change the weights of their linear layers, past an adapter."""

_CAUSAL_HEAD = re.compile(CAUSAL_HEAD, re.IGNORECASE)
_WRAPPED_HEAD = re.compile(f"{CAUSAL_HEAD}|{WRAPPED_HEAD}", re.IGNORECASE)
_LONGEST_FOUND = 200


@dataclass(frozen=True)
class Refusal:
    """The rule that refuses a model, and what was found in it."""

    rule: str
    found: str

    @property
    def message(self) -> str:
        """What must be, what was found, and the remedy."""
        must, remedy = RULES[self.rule]
        return f"{must}, found {self.found}; {remedy}"


def refusal(config: Mapping[str, Any], *, known: bool) -> Refusal | None:
    """Return the first rule that refuses the model of a config.json; None if no rule does.

    `known` says that its model type needs no code of the repository. Such a model may have other parts next to a text part.
    """
    wrapped = known and bool(_text_part(config))
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    found = (
        ("QuantizedAlready", None if dequantized_in_prepare(config) else _quantizer(parts)),
        ("RemoteCode", _remote_code(config, known=known)),
        ("OtherInputs", _encoder(config) if wrapped else _other_inputs(config)),
        (
            "NoCausalHead",
            _other_head(config.get("architectures"), _WRAPPED_HEAD if wrapped else _CAUSAL_HEAD),
        ),
        ("OtherLinearLayers", _other_linear_layers(config.get("model_type"))),
        ("WeightReaders", _weight_readers(config.get("model_type"))),
    )
    return next((Refusal(rule, what[:_LONGEST_FOUND]) for rule, what in found if what is not None), None)


def refused_part(config: Mapping[str, Any]) -> Refusal | None:
    """Return the refusal of a model that takes other inputs than text and has no text part that can be trained alone."""
    found = _other_inputs(config)
    return None if found is None else Refusal("OtherInputs", found[:_LONGEST_FOUND])


def dequantized_in_prepare(config: Mapping[str, Any]) -> bool:
    """Return whether PREPARE dequantizes the checkpoint of a config.json."""
    settings = config.get("quantization_config")
    kind = config.get("model_type")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return isinstance(kind, str) and method is not None and DEQUANTIZED.get(kind) == method


def refused_file(names: Iterable[str]) -> Refusal | None:
    """Return the refusal of a model with files of these names; None if no file is a quantizer's."""
    name = next((name for name in sorted(names) if name in QUANTIZED_FILES), None)
    return (
        None
        if name is None
        else Refusal("QuantizedAlready", f"a checkpoint quantized already: {name} next to the weights")
    )


def refused_tensor(names: Iterable[str]) -> Refusal | None:
    """Return the refusal of a model with tensors of these names; None if no name is of a quantized checkpoint."""
    name = next((name for name in names if name.endswith(QUANTIZED_TENSORS)), None)
    return (
        None
        if name is None
        else Refusal("QuantizedAlready", f"a checkpoint quantized already: tensor {name}")
    )


def _quantizer(parts: Iterable[Mapping[str, Any]]) -> str | None:
    for part in parts:
        for member in QUANTIZED_MEMBERS:
            value = part.get(member)
            if value:
                method = value.get("quant_method", member) if isinstance(value, Mapping) else value
                return f"a checkpoint quantized already: `{member}` ({method}) in config.json"
    return None


def _remote_code(config: Mapping[str, Any], *, known: bool) -> str | None:
    if known or not config.get(REMOTE_CODE):
        return None
    return f"`{REMOTE_CODE}` in config.json and model type {config.get('model_type')!r}, which is not known"


def _other_inputs(config: Mapping[str, Any]) -> str | None:
    member = next(_nested(config), None)
    if member is not None:
        return f"a multimodal model (`{member}` in config.json)"
    return _encoder(config)


def _encoder(config: Mapping[str, Any]) -> str | None:
    if config.get(ENCODER_DECODER):
        return f"an encoder-decoder (`{ENCODER_DECODER}` in config.json)"
    return None


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    part = config.get(TEXT_PART)
    return part if isinstance(part, Mapping) else {}


def _nested(config: Mapping[str, Any]) -> Iterator[str]:
    """Find members that describe an encoder of images or sounds, or the text part of such a model."""
    objects = [key for key, value in config.items() if isinstance(value, Mapping) and value]
    for key in objects:
        if any(word in key.lower() for word in OTHER_INPUTS):
            yield key
    for key in objects:
        if key in WRAPPED:
            yield key


def _other_head(declared: Any, head: re.Pattern[str]) -> str | None:
    if not isinstance(declared, list) or not declared:
        return None
    names = [str(name) for name in declared]
    if any(head.search(name) for name in names):
        return None
    return f"architecture {', '.join(names)}"


def _other_linear_layers(kind: Any) -> str | None:
    if kind not in OTHER_LINEAR_LAYERS:
        return None
    return f"model type {kind!r}, whose linear layers are of another class"


def _weight_readers(kind: Any) -> str | None:
    if kind not in WEIGHT_READERS:
        return None
    return f"model type {kind!r}, whose layers change the weights"
