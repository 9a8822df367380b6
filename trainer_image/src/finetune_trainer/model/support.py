"""Rejects base models that cannot be tuned: by config and small files first, then by the built structure.

The rules check structure: tensors that are quantized already, parts that would stay in 16 bits, inputs other than
text. So they also judge families that are not known here.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from finetune_trainer.contract.refusals import (
    REMOTE_CODE,
    Refusal,
    refusal,
    refused_file,
    refused_part,
    refused_tensor,
)
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.packed_parameters import packed_parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

_log = logging.getLogger(__name__)
_LARGEST_LAYERS = 2048
# The largest fraction of parameters outside of embeddings and plain linear layers; these stay in 16 bits.
_LARGEST_UNQUANTIZED = 0.1


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json. Raises StageError(InvalidModel) unless it is an object with a `model_type`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StageError(
            Reason.INVALID_MODEL,
            f"config.json must be readable JSON, found: {error}; fetch the model again",
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("model_type"), str):
        raise StageError(
            Reason.INVALID_MODEL,
            "config.json must be an object with a string `model_type`, found none; fetch the model again",
        )
    return document


def is_native(kind: str) -> bool:
    """Return whether transformers has a language model of this type, alone or as part of one that also sees or hears."""
    return kind in CONFIG_MAPPING and (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    )


def reject_files(folder: Path) -> None:
    """Raise StageError(UnsupportedModel) if the folder has the settings of a quantizer."""
    _reject(refused_file(path.name for path in folder.iterdir() if path.is_file()))


def reject_config(document: dict[str, Any]) -> None:
    """Raise StageError(UnsupportedModel) for a config.json that cannot be tuned, InvalidModel for absurd sizes.

    `auto_map` of a type that transformers has is ignored with a line in the log.
    """
    native = is_native(document["model_type"])
    _reject(refusal(document, known=native))
    if native and document.get(REMOTE_CODE):
        _log.warning(
            "config.json has `%s`, but transformers has %s itself: the repository's code is not run",
            REMOTE_CODE,
            document["model_type"],
        )
    _reject_absurd_depth([document, *(part for part in document.values() if isinstance(part, dict))])


def reject_structure(model: Any, document: dict[str, Any]) -> None:
    """Raise StageError(UnsupportedModel) for the structure of a model on the meta device.

    Reasons are: another architecture than the config declares, inputs other than text, experts that the weight files hold in
    a way that is not understood, and any other large part that would not be quantized.
    """
    architecture = type(model).__name__
    declared = document.get("architectures")
    # transformers builds another architecture of the family for some configs: Ministral for a Mistral with `layer_types`.
    own = {architecture, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(document.get("model_type", "")))}
    if isinstance(declared, list) and declared:
        names = [str(name) for name in declared]
        if not set(map(_plain, own)) & set(map(_plain, names)):
            raise StageError(
                Reason.UNSUPPORTED_MODEL,
                f"the model must be a causal language model, found architecture {', '.join(names)} (transformers "
                f"would build {architecture}); choose a model for text generation",
            )
    senses = model.input_modalities
    # Text models of multimodal families inherit the family's modalities, but not its sub-configs.
    if ({senses} if isinstance(senses, str) else set(senses)) != {"text"} and model.config.sub_configs:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the model must take text alone, found {architecture} that takes {senses}; "
            "choose the family's text model",
        )
    _reject_large_rest(model, architecture)


def reject_other_architecture(document: dict[str, Any], architecture: str) -> None:
    """Raise StageError(UnsupportedModel) if a config.json declares another class than the one with a text part."""
    declared = document.get("architectures")
    names = [str(name) for name in declared] if isinstance(declared, list) else []
    if names and _plain(architecture) not in map(_plain, names):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the model must be a language model, alone or as a part of {architecture}, found architecture "
            f"{', '.join(names)}; choose a model for text generation",
        )


def reject_other_inputs(document: dict[str, Any]) -> None:
    """Raise StageError(UnsupportedModel) if a model without a text part has parts for images or sounds."""
    _reject(refused_part(document))


def _plain(name: str) -> str:
    """Return a class name without what files spell in several ways, such as Ernie4_5_ForCausalLM."""
    return name.replace("_", "").lower()


def reject_tensor_names(names: Iterable[str]) -> None:
    """Raise StageError(UnsupportedModel) if an index or header has the names of a quantized checkpoint."""
    _reject(refused_tensor(names))


def _reject(found: Refusal | None) -> None:
    if found is not None:
        raise StageError(Reason.UNSUPPORTED_MODEL, found.message)


def _reject_absurd_depth(parts: list[dict[str, Any]]) -> None:
    """Raise StageError(InvalidModel) if the model has so many layers that building it would take hours."""
    for part in parts:
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            layers = part.get(key)
            if isinstance(layers, int) and layers > _LARGEST_LAYERS:
                raise StageError(
                    Reason.INVALID_MODEL,
                    f"`{key}` in config.json must be at most {_LARGEST_LAYERS}, found {layers}; "
                    "compare it with the original model's",
                )


def _reject_large_rest(model: Any, architecture: str) -> None:
    """Reject a model if a large part is neither embedding nor linear layer nor packed."""
    packed = {parameter.name for parameter in packed_parameters(model)}
    counted: set[int] = set()
    rest: dict[str, int] = {}
    total = 0
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in counted:
                continue
            counted.add(id(parameter))
            total += parameter.numel()
            # Subclasses of Linear are not replaced by 4-bit modules.
            plain = type(module) is torch.nn.Linear or isinstance(module, torch.nn.Embedding)
            if not plain and f"{path}.{name}" not in packed:
                rest[f"{path}.{name}"] = parameter.numel()
    if sum(rest.values()) > _LARGEST_UNQUANTIZED * total:
        largest = max(rest, key=lambda name: rest[name])
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"at least {1 - _LARGEST_UNQUANTIZED:.0%} of the parameters must be in embeddings, linear layers and experts, "
            f"found {sum(rest.values()) / total:.0%} elsewhere in {architecture} (the largest: {largest}), which would "
            "not be quantized; choose another model",
        )


def tensor_list(names: Collection[str]) -> str:
    """Return the number of tensors and the names of the first three."""
    shown = sorted(names)[:3]
    return f"{len(names)}: {', '.join(shown)}{', ...' if len(names) > len(shown) else ''}"
