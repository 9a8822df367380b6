"""Finds the text model in a model that also sees or hears, by the structure that transformers builds from its config.

The text model is what transformers builds from the text part of the config. Its layers are the one module of the whole model
with the same class. Every tensor of the weight files has a name in the whole model, in any layout that transformers loads, and
so a name in the text model, or none.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    rename_source_key,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    AutoModelForMultimodalLM,
)

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.packed_parameters import parts_of, stacked_parameters
from finetune_trainer.model.text_class import provide_text_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TextPart:
    """The text model of a larger model.

    `architecture` is the class of the larger model and `config` the config of the text model alone. `model` is the text model
    on the meta device, and `others` counts the parameters that do not belong to it.
    """

    architecture: str
    config: Any
    model: Any
    others: int
    _names: _Names = field(repr=False)

    def text_name(self, name: str) -> str | None:
        """Return the text model's name of a tensor of the weight files; None if it belongs to another part."""
        return self._names.text_name(name)

    def whole_name(self, name: str) -> str:
        """Return the whole model's name of a tensor or module of the text model."""
        return self._names.whole_name(name)

    def document(self) -> dict[str, Any]:
        """Return the members of the text model's config.json."""
        return {**self.config.to_dict(), "architectures": [type(self.model).__name__]}


def has_other_senses(config: Any) -> bool:
    """Return whether `config` is that of a model with a text part among others, as its `architectures` say."""
    if config.is_encoder_decoder or config.model_type not in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return False
    if _text_config(config) is config:
        return False
    # Some families also have text models with the config of the whole family.
    alone = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    whole = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[config.model_type]
    declared = config.architectures or [whole]
    return alone == whole or alone not in declared


def find_text_part(config: Any, dtype: torch.dtype = torch.bfloat16) -> TextPart | None:
    """Return the text part of the model of `config`; None if the whole model is a text model.

    Raises StageError(UnsupportedModel) if transformers has no text model of its own for that part, or if the parts do not
    agree, and any error of transformers for a config that no model can be built from.
    """
    if not has_other_senses(config):
        return None
    with torch.device("meta"):
        whole: Any = AutoModelForMultimodalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    text = _text_model(_text_config(config), config, dtype)
    body, own_body = _place_of_body(whole, text)
    root = _root(whole, text, body, own_body)
    tied = _is_tied(whole, text, root)
    if bool(getattr(text.config, "tie_word_embeddings", False)) != tied:
        # The whole model's own member decides, and it can differ from that of the part.
        changed = copy.deepcopy(_text_config(config))
        changed.tie_word_embeddings = tied
        text = _text_model(changed, config, dtype)
    names = _Names(whole, text, _Places(body, own_body, root))
    names.require_every_tensor()
    return TextPart(
        architecture=type(whole).__name__,
        config=text.config,
        model=text,
        others=whole.num_parameters() - text.num_parameters(),
        _names=names,
    )


def auto_class(config: Any) -> Any:
    """Return the class of transformers that loads the whole model of `config`."""
    if has_other_senses(config):
        return AutoModelForMultimodalLM
    provide_text_class(config)
    return AutoModelForCausalLM


def _text_config(config: Any) -> Any:
    try:
        return config.get_text_config()
    except ValueError:
        return config  # several parts could be meant


def _text_model(part: Any, config: Any, dtype: torch.dtype) -> Any:
    if not provide_text_class(part):
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"transformers must have a language model for the text part of {config.model_type}, found none for model type "
            f"{part.model_type!r}; choose the family's text model",
        )
    part = copy.deepcopy(part)
    for name in _TOKENS:
        if getattr(part, name, None) is None and getattr(config, name, None) is not None:
            setattr(part, name, getattr(config, name))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(part, dtype=dtype, trust_remote_code=False)


@dataclass(frozen=True)
class _Places:
    """The names of the layers' module in the whole model and in the text model, and of the module that owns the head."""

    body: str
    own_body: str
    root: str


def _place_of_body(whole: Any, text: Any) -> tuple[str, str]:
    body = text.base_model if text.base_model is not text else text.model
    own = next(name for name, module in text.named_modules() if module is body)
    found = [name for name, module in whole.named_modules() if type(module) is type(body)]
    if len(found) != 1:
        raise _not_found(whole, f"{len(found)} modules of class {type(body).__name__}")
    return found[0], own


def _root(whole: Any, text: Any, body: str, own_body: str) -> str:
    """Return the name of the module that holds what the text model has next to its layers, such as its head."""
    others = [name for name in text.state_dict() if not name.startswith(f"{own_body}.")]
    held = whole.state_dict().keys()
    root = body
    while root:
        root = root.rpartition(".")[0]
        if all(_joined(root, name) in held for name in others):
            return root
    raise _not_found(whole, f"no module with {', '.join(others)}")


def _is_tied(whole: Any, text: Any, root: str) -> bool:
    head = text.get_output_embeddings()
    own = next(name for name, module in text.named_modules() if module is head)
    pairs = whole.all_tied_weights_keys
    return _joined(root, f"{own}.weight") in {*pairs, *pairs.values()}


class _Names:
    """Translates the names of tensors from the weight files to the text model."""

    def __init__(self, whole: Any, text: Any, places: _Places) -> None:
        transforms = get_model_conversion_mapping(whole)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self._converters = [one for one in transforms if isinstance(one, WeightConverter)]
        self._prefix = whole.base_model_prefix
        self._whole, self._text, self._places = whole, text, places
        self._held = whole.state_dict()
        self._wanted = text.state_dict()
        self._translated: dict[str, str | None] = {}
        self._packed = self._packed_names()

    def text_name(self, name: str) -> str | None:
        if name not in self._translated:
            whole = self._name_in_whole(name)
            self._translated[name] = self._packed.get(whole) or self._in_text(whole)
        return self._translated[name]

    def require_every_tensor(self) -> None:
        """Raise StageError(UnsupportedModel) unless each tensor of the text model is one of the whole model."""
        for name, tensor in self._wanted.items():
            other = self._held.get(self.whole_name(name))
            if other is None or other.shape != tensor.shape:
                found = "no such tensor" if other is None else f"the shape {list(other.shape)}"
                raise _not_found(self._whole, f"{found} for {name} of {type(self._text).__name__}")

    def _name_in_whole(self, name: str) -> str:
        """Return the whole model's name of a tensor of the weight files, before tensors are joined or split."""
        renamed = str(apply_renamings(name, self._renamings))
        _, joined = apply_converters(renamed, self._converters)
        whole, _ = rename_source_key(name, self._renamings, self._converters, self._prefix, self._held)
        if joined is None:
            return str(whole)
        missing = whole.startswith(f"{self._prefix}.") and not renamed.startswith(f"{self._prefix}.")
        return f"{self._prefix}.{renamed}" if missing else renamed

    def _in_text(self, whole: str) -> str | None:
        places = self._places
        if whole.startswith(f"{places.body}."):
            return _joined(places.own_body, whole.removeprefix(f"{places.body}."))
        prefix = f"{places.root}." if places.root else ""
        name = whole.removeprefix(prefix)
        return name if whole.startswith(prefix) and name in self._wanted else None

    def whole_name(self, name: str) -> str:
        places = self._places
        if name.startswith(f"{places.own_body}."):
            return _joined(places.body, name.removeprefix(f"{places.own_body}."))
        return _joined(places.root, name)

    def _packed_names(self) -> Mapping[str, str]:
        """Return the names, in a checkpoint of the text model, of the tensors that hold matrices of experts.

        Raises StageError(UnsupportedModel) if the whole model's weight files hold a parameter in other parts than the text
        model's.
        """
        own = stacked_parameters(self._text)
        if not own:
            return {}
        parts = parts_of(self._text, own)
        whole_parts = parts_of(self._whole, {self.whole_name(name): value for name, value in own.items()})
        names: dict[str, str] = {}
        for name, of_text in parts.items():
            of_whole = whole_parts[self.whole_name(name)]
            places = {(part.expert, part.first, part.last): part.tensor for part in of_text}
            if {(part.expert, part.first, part.last) for part in of_whole} != places.keys():
                raise _not_found(
                    self._whole, f"{_tensors(of_whole)} where the text model has {_tensors(of_text)}"
                )
            for part in of_whole:
                names[self._name_in_whole(part.tensor)] = places[part.expert, part.first, part.last]
        return names


def _tensors(parts: Iterable[Any]) -> str:
    return ", ".join(sorted(part.tensor for part in parts)[:2])


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _not_found(whole: Any, found: str) -> StageError:
    return StageError(
        Reason.UNSUPPORTED_MODEL,
        f"the text part of {type(whole).__name__} must be a language model of transformers, found {found}; choose the "
        "family's text model",
    )
