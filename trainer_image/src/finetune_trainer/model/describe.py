"""Describes a base model from its config on the meta device: parameters, tied parameters and 4-bit modules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.context import position_limit, rotary_context
from finetune_trainer.model.naming import other_names
from finetune_trainer.model.packed_parameters import PackedParameter, kept_layers, packed_parameters
from finetune_trainer.model.rehearsal import rehearse
from finetune_trainer.model.support import (
    is_native,
    read_config,
    reject_config,
    reject_files,
    reject_other_architecture,
    reject_other_inputs,
    reject_structure,
)
from finetune_trainer.model.text_part import TextPart, find_text_part

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

# Errors of transformers for values that it cannot build a model from; they have no common base class.
_BUILD_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    OSError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)
# Buffers of old checkpoints that every version of transformers ignores.
_IGNORED_ALWAYS = (r"rotary_emb\.inv_freq$",)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class BaseModel:
    """Facts about a supported model.

    `parameter_shapes` has every tensor by its name in the weight files. Tensors in `optional` may be missing there,
    because they share the values of another tensor or are computed. `ignored` has patterns of names that may be there
    without a meaning to the architecture. `quantized` names the linear modules that become 4-bit. `tied` has pairs of
    tensors that are one by the config. `embedding_rows` counts the token ids that have an embedding. `positions` is the
    largest number of tokens that the model can take, and `context` the number that its rotary embedding covers; both
    are None if nothing limits it. `aliases` has other names that weight files of the family give to tensors that are not
    quantized, and `changed` the names of tensors that transformers converts while it loads them. `packed` has the parameters
    of many matrices, whose tensors are also in `quantized`. `unquantized` names all linear modules that stay in 16 bits, if
    there are others than the output head.

    `part` is set for a model that also sees or hears. Then `architecture` is that of the whole model and all else describes
    its text model, whose tensors have the names of the text model.
    """

    architecture: str
    parameters: int
    parameter_shapes: dict[str, tuple[int, ...]]
    optional: frozenset[str]
    ignored: tuple[str, ...]
    quantized: tuple[str, ...]
    tied: tuple[tuple[str, str], ...]
    embedding_rows: int
    positions: int | None
    context: int | None
    aliases: Mapping[str, str] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    packed: tuple[PackedParameter, ...] = ()
    unquantized: tuple[str, ...] = ()
    part: TextPart | None = None

    @property
    def other_parameters(self) -> int:
        """The number of parameters outside of the text model."""
        return 0 if self.part is None else self.part.others

    @property
    def quantized_tensors(self) -> frozenset[str]:
        """The names in the weight files of all quantized tensors."""
        names = (f"{module}.weight" for module in self.quantized)
        return frozenset(
            name if name in self.parameter_shapes else name.removesuffix(".weight") for name in names
        )

    @property
    def transposed(self) -> tuple[str, ...]:
        """The quantized modules whose matrices hold a row for each input."""
        return tuple(sorted(part.module for one in self.packed if one.transposed for part in one.parts))

    def known(self, name: str) -> str | None:
        """Return the name in `parameter_shapes` of a tensor of the weight files; None if it is kept as it is.

        That is every tensor outside of the text model, and one of the text part that is like none of its tensors. A tensor of a
        layer that the config does not have keeps its name, because it shows that the config is wrong.
        """
        if self.part is None:
            return self.aliases.get(name, name)
        own = self.part.text_name(name)
        if own is None:
            return None
        own = self.aliases.get(own, own)
        meant = own in self.parameter_shapes or own in self.changed or _NUMBER.sub("#", own) in self._kinds
        return own if meant else None

    def stored(self, name: str) -> str | None:
        """Return the name in the 4-bit checkpoint of a tensor of the weight files; None if it is not in there."""
        return name if self.part is None else self.known(name)

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return frozenset(_NUMBER.sub("#", name) for name in self.parameter_shapes)

    def ignores(self, name: str) -> bool:
        """Return whether a tensor of this name in the weight files has no meaning to the architecture."""
        return any(re.search(pattern, name) for pattern in self.ignored)


def quantization_config() -> BitsAndBytesConfig:
    """Return the only setting for training: NF4, double quantization, bf16 compute."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def inspect_base_model(folder: Path, *, rehearsed: bool = False) -> BaseModel:
    """Build the model in `folder` on the meta device (no weights are read) and describe it.

    `rehearsed` says that this model was inspected before, so that its layers need not be tried again.

    Raises StageError(InvalidModel) if the config is not one or its layers do not fit together, and UnsupportedModel for
    models that cannot be trained and merged exactly: remote code, quantized checkpoints, unknown types, a text part that is no
    language model of transformers, and heads of unknown computation.
    """
    document = read_config(folder / "config.json")
    reject_files(folder)
    reject_config(document)
    model, part = _build(folder, document)
    reject_structure(model, document if part is None else {})
    if not rehearsed:
        rehearse(model)
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    computed = {
        name
        for name, _ in model.named_buffers()
        if any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_missing or ())  # noqa: SLF001 -- loading reads it the same way
    }
    ignored = (*_IGNORED_ALWAYS, *sorted(model._keys_to_ignore_on_load_unexpected or ()))  # noqa: SLF001 -- same
    tied = dict(model.all_tied_weights_keys)
    rows = int(model.get_input_embeddings().weight.shape[0])
    positions, context = position_limit(model), rotary_context(model.config.get_text_config())
    parameters = model.num_parameters()
    packed = packed_parameters(model)
    parts = {part.tensor: parameter.shape(part) for parameter in packed for part in parameter.parts}
    others = {name: known for name, known in other_names(model).items() if name not in parts}
    for parameter in packed:
        del shapes[parameter.name]
    shapes |= parts
    quantized = (
        *replace_linear_layers(model, packed),
        *sorted(name.removesuffix(".weight") for name in parts),
    )
    if not quantized:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the model must have linear layers to quantize, found none in {type(model).__name__}; "
            "choose another model",
        )
    aliases = {name: known for name, known in others.items() if known and not _within(known, quantized)}
    changed = frozenset(others) - aliases.keys()
    return BaseModel(
        architecture=type(model).__name__ if part is None else part.architecture,
        parameters=parameters,
        parameter_shapes=shapes,
        optional=frozenset(tied) | computed,
        ignored=ignored,
        quantized=quantized,
        tied=tuple(sorted(tied.items())),
        embedding_rows=rows,
        positions=positions,
        context=context,
        aliases=aliases,
        changed=changed,
        packed=packed,
        unquantized=_unquantized(model),
        part=part,
    )


def _unquantized(model: Any) -> tuple[str, ...]:
    """Return the linear modules of a model whose others are 4-bit modules, unless only its output head is left."""
    left = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    head = model.get_output_embeddings()
    return tuple(sorted(left)) if any(module is not head for module in left.values()) else ()


def _within(tensor: str, modules: Collection[str]) -> bool:
    return tensor.rpartition(".")[0] in modules


def _build(folder: Path, document: dict[str, Any]) -> tuple[Any, TextPart | None]:
    """Build the causal language model without memory for its weights; the second value tells of what it is a part."""
    kind = document["model_type"]
    if not is_native(kind):
        raise _unknown(kind)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # transformers takes an empty member for the settings of a quantizer.
        if not getattr(config, "quantization_config", True):
            del config.quantization_config
        part = find_text_part(config)
        if part is not None:
            reject_other_architecture(document, part.architecture)
            return part.model, part
        reject_other_inputs(document)
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise _unknown(kind)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
            return model, None
    except _BUILD_ERRORS as error:
        if isinstance(error, StageError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise StageError(
            Reason.INVALID_MODEL,
            f"config.json must describe a model of type {kind!r} that transformers can build, found: "
            f"{' '.join(lines[:2])}; compare it with the original model's",
        ) from error


def _unknown(kind: str) -> StageError:
    return StageError(
        Reason.UNSUPPORTED_MODEL,
        f"config.json must describe a causal language model that transformers can build, found model type "
        f"{kind!r}; choose another model",
    )


def replace_linear_layers(model: Any, packed: Iterable[PackedParameter]) -> tuple[str, ...]:
    """Replace the linear layers that PREPARE quantizes by 4-bit ones, and return their names.

    These are the layers that transformers would replace, without `kept_layers` and the parameters `packed`.
    """
    kept = [*kept_layers(model), *(parameter.name.removesuffix(".weight") for parameter in packed)]
    skipped = Bnb4BitHfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)  # noqa: SLF001 -- the quantizer reads it the same way
    skipped = [*skipped, *(f"^{re.escape(name)}$" for name in kept)]
    replace_with_bnb_linear(model, modules_to_not_convert=skipped, quantization_config=quantization_config())
    return tuple(name for name, module in model.named_modules() if isinstance(module, Linear4bit))
