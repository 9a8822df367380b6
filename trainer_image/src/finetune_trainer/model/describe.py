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
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.context import position_limit, rotary_context
from finetune_trainer.model.packed_parameters import PackedParameter, kept_layers, packed_parameters
from finetune_trainer.model.rehearsal import rehearse
from finetune_trainer.model.router_loss import router_loss_obstacle
from finetune_trainer.model.support import (
    is_native,
    read_config,
    reject_config,
    reject_files,
    reject_other_architecture,
    reject_other_inputs,
    reject_structure,
    tensor_list,
)
from finetune_trainer.model.text_class import provide_text_class
from finetune_trainer.model.text_part import TextPart, find_text_part
from finetune_trainer.model.weight_places import Rows, WeightPlaces, weight_places

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
    OSError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)
# Buffers of old checkpoints that every version of transformers ignores.
_BLOCK = 64
_IGNORED_ALWAYS = (r"rotary_emb\.inv_freq$",)
_NEEDED = re.compile(r"requires the (\S+) library")
"""How transformers names a package that it does not find."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class BaseModel:
    """Facts about a supported model.

    `parameter_shapes` has every tensor by its name in the weight files. Tensors in `optional` may be missing there,
    because they share the values of another tensor or are computed. `ignored` has patterns of names that may be there
    without a meaning to the architecture. `quantized` names the linear modules that become 4-bit. `tied` has pairs of
    tensors that are one by the config. `embedding_rows` counts the token ids that have an embedding. `positions` is the
    largest number of tokens that the model can take, and `context` the number that its rotary embedding covers; both
    are None if nothing limits it. `aliases` has the names in `parameter_shapes` of tensors that weight files of the family
    call otherwise. `cut` has the rows of a tensor of the files that are the weight of a module, and `joined` tells of a tensor
    of the files to which tensor of the model its rows belong. `changed` names tensors that transformers converts in another
    way. `router_loss_obstacle` says why the model has no load-balancing loss. `packed` has the parameters of many matrices,
    whose tensors are also in `quantized`. `unquantized` names all linear modules that stay in 16 bits, if there are others
    than the output head.

    `part` is set for a model that also sees or hears. Then `architecture` is that of the whole model and all else describes
    its text model, whose tensors have the names that weight files of the text model alone have.
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
    cut: Mapping[str, Rows] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)
    router_loss_obstacle: str | None = None
    packed: tuple[PackedParameter, ...] = ()
    unquantized: tuple[str, ...] = ()
    part: TextPart | None = None

    @property
    def other_parameters(self) -> int:
        """The number of parameters outside of the text model."""
        return 0 if self.part is None else self.part.others

    @property
    def quantized_tensors(self) -> frozenset[str]:
        """The names in `parameter_shapes` of all quantized tensors."""
        return frozenset(self.tensor_of(module) for module in self.quantized)

    @property
    def transposed(self) -> tuple[str, ...]:
        """The quantized modules whose matrices hold a row for each input."""
        return tuple(sorted(part.module for one in self.packed if one.transposed for part in one.parts))

    def tensor_of(self, module: str) -> str:
        """Return the name in `parameter_shapes` of the tensor that holds a quantized module's weight."""
        name = f"{module}.weight"
        if module in self.cut:
            return self.cut[module].tensor
        return name if name in self.parameter_shapes else module

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

    def layout_members(self, spelled: Mapping[str, str]) -> dict[str, Any]:
        """Return what `base/layout.json` tells of the quantized tensors.

        `spelled` has the names in the 4-bit checkpoint of tensors in `parameter_shapes`, if they are others.
        """
        tensors = {module: self.tensor_of(module) for module in self.quantized}
        held = {module: spelled.get(known, known) for module, known in tensors.items()}
        places = {
            module: self.cut.get(module) or Rows(name, 0, self.parameter_shapes[tensors[module]][0])
            for module, name in held.items()
            if module in self.cut or name not in {f"{module}.weight", module}
        }
        members: dict[str, Any] = {
            "quantized": list(dict.fromkeys(name.removesuffix(".weight") for name in held.values()))
        }
        if self.transposed:
            members["transposed"] = list(self.transposed)
        if places:
            members["places"] = {
                module: [rows.tensor, rows.first, rows.last] for module, rows in sorted(places.items())
            }
        return members

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
    obstacle = router_loss_obstacle(model)
    packed = packed_parameters(model)
    parts = {part.tensor: parameter.shape(part) for parameter in packed for part in parameter.parts}
    places = weight_places(model, {parameter.name for parameter in packed})
    for name in (*(parameter.name for parameter in packed), *places.cut, *places.joined):
        del shapes[name]
    shapes |= parts | dict(places.shapes)
    linear = replace_linear_layers(model, (parameter.name for parameter in packed))
    _require_whole_blocks(linear, places, type(model).__name__)
    quantized = (*linear, *sorted(name.removesuffix(".weight") for name in parts))
    if not quantized:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the model must have linear layers to quantize, found none in {type(model).__name__}; "
            "choose another model",
        )
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
        aliases={name: known for name, known in places.renamed.items() if name not in parts},
        changed=places.unknown - parts.keys(),
        cut={module: places.cut[f"{module}.weight"] for module in linear if f"{module}.weight" in places.cut},
        joined={tensor: name for name, tensors in places.joined.items() for tensor in tensors},
        router_loss_obstacle=obstacle,
        packed=packed,
        unquantized=_unquantized(model),
        part=part,
    )


def _unquantized(model: Any) -> tuple[str, ...]:
    """Return the linear modules of a model whose others are 4-bit modules, unless only its output head is left."""
    left = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    head = model.get_output_embeddings()
    return tuple(sorted(left)) if any(module is not head for module in left.values()) else ()


def _require_whole_blocks(linear: Collection[str], places: WeightPlaces, architecture: str) -> None:
    """Check that the files hold the weight of each quantized layer so that its blocks of 64 weights are its own.

    `linear` names the quantized layers. Raises StageError(UnsupportedModel) naming the first other layer.
    """
    for module in linear:
        found = _shared_blocks(f"{module}.weight", linear, places)
        if found is not None:
            raise StageError(
                Reason.UNSUPPORTED_MODEL,
                f"the weight files must hold {module} of {architecture} so that it can be quantized by itself, found {found}; "
                "choose another model",
            )


def _shared_blocks(name: str, linear: Collection[str], places: WeightPlaces) -> str | None:
    """Return why the blocks of a weight are not its own; None if they are."""
    if name in places.joined:
        return f"it in several tensors: {tensor_list(places.joined[name])}"
    rows = places.cut.get(name)
    if rows is None:
        return None
    others = (one for one in places.cut_from(rows.tensor) if one.removesuffix(".weight") not in linear)
    other = next(others, None)
    if other is not None:
        return f"{other}, which is not quantized, in the same tensor {rows.tensor}"
    if rows.first * places.shapes[rows.tensor][-1] % _BLOCK:
        return f"it from row {rows.first} of {rows.tensor} on, in the middle of a block"
    return None


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
        if not provide_text_class(config):
            raise _unknown(kind)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
            return model, None
    except ImportError as error:
        raise _without_package(kind, error) from error
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


def _without_package(kind: str, error: ImportError) -> StageError:
    """Return the refusal of a model that needs a package: its config is valid, so no other copy of it would help."""
    needed = _NEEDED.findall(str(error)) or [error.name or str(error).strip().partition("\n")[0]]
    return StageError(
        Reason.UNSUPPORTED_MODEL,
        f"transformers must build a model of type {kind!r} with the packages of the trainer image, found that it needs "
        f"{', '.join(dict.fromkeys(needed))}; choose another model",
    )


def replace_linear_layers(model: Any, packed: Iterable[str]) -> tuple[str, ...]:
    """Replace the linear layers that PREPARE quantizes by 4-bit ones, and return their names.

    These are the layers that transformers would replace, without `kept_layers` and the parameters named `packed`.
    """
    kept = [*kept_layers(model), *(name.removesuffix(".weight") for name in packed)]
    skipped = Bnb4BitHfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)  # noqa: SLF001 -- the quantizer reads it the same way
    skipped = [*skipped, *(f"^{re.escape(name)}$" for name in kept)]
    replace_with_bnb_linear(model, modules_to_not_convert=skipped, quantization_config=quantization_config())
    return tuple(name for name, module in model.named_modules() if isinstance(module, Linear4bit))
