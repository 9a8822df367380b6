"""Builds a quantized model from any config.json with fake tensors: sizes and types without values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from finetune_trainer.model.describe import replace_linear_layers
from finetune_trainer.model.load import attention_implementation, compute_dtype
from finetune_trainer.model.matrix_stack import use_own_experts
from finetune_trainer.model.packed_parameters import packed_names
from finetune_trainer.model.text_class import provide_text_class
from finetune_trainer.model.text_part import find_text_part
from finetune_trainer.model.weight_places import weight_places
from finetune_trainer.trace.allocations import rounded

# Block sizes of bitsandbytes' NF4 (functional.quantize_4bit): weights per block, first-level constants per block.
_BLOCK = 64
_CONSTANTS_BLOCK = 256
# These types scale positions by the batch's length, which reads values; their tables have the default's size.
_READING_ROPES = ("dynamic", "longrope")


class UntraceableError(ValueError):
    """The step of a model cannot run on fake tensors. The message says why."""


def build_config(document: dict[str, Any]) -> Any:
    """Return transformers' config of a config.json, or that of its text part alone.

    Raises UntraceableError if transformers has no causal language model of its type, and StageError as
    `text_part.find_text_part` does.
    """
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UntraceableError(f"transformers must have a model of type {kind!r:.80}")
    config = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(document))
    part = find_text_part(config)
    config = config if part is None else part.config
    if not provide_text_class(config):
        raise UntraceableError(f"transformers must have a causal language model of type {kind!r:.80}")
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict):
        config.rope_parameters = _readable(rope)
    return config


def _readable(rope: Any) -> Any:
    """Return the settings of rotary embeddings, of the model or of each kind of layer, with tables of the default's size."""
    if not isinstance(rope, dict):
        return rope
    if rope.get("rope_type") in _READING_ROPES:
        return {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return {name: _readable(value) for name, value in rope.items()}


def plain_structure(config: Any) -> Any:
    """Build the model on the meta device, before its modules become 4-bit ones."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=compute_dtype("cuda"), attn_implementation=attention_implementation(config)
        )
    use_own_experts(model)
    return model


def quantized_structure(model: Any) -> Any:
    """Return a `plain_structure` as transformers changes it before it loads a quantized checkpoint.

    The 4-bit modules are those that PREPARE quantizes. Packed parameters stay as they are (`trace.packed`).
    """
    packed = packed_names(model)
    places = weight_places(model, set(packed))
    layers = replace_linear_layers(model, packed)
    for name in layers:
        if f"{name}.weight" in places.cut:
            # TRAIN gives rows of a larger tensor scales of their own (`model.packed_load`).
            model.get_submodule(name).weight.compress_statistics = False
    return model


def adaptable_modules(model: Any) -> tuple[str, ...]:
    """Return the modules of a `quantized_structure` that may get an adapter as modules: 4-bit linear layers, and `Conv1D`.

    TRAIN's experts have an adapter of their own (`trace.packed`).
    """
    return tuple(name for name, module in model.named_modules() if isinstance(module, Linear4bit | Conv1D))


def give_fake_tensors(model: Any) -> None:
    """Replace the tensors of a `quantized_structure` by fake ones, packed as in a loaded model.

    Call it with a FakeTensorMode active.
    """
    fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        """Return the same fake for the same tensor, so ties persist. The tensor stays alive, so its id stays unique."""
        if id(tensor) not in fakes:
            made = torch.empty(tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=False)
            fakes[id(tensor)] = (tensor, made)
        return fakes[id(tensor)][1]

    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            _pack(module, nested=weight.compress_statistics)
        # Some modules (rotary embeddings) also keep buffers as plain attributes.
        for tensors in (module._parameters, module._buffers, module.__dict__):
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                    tensors[name] = fake(tensor)
    model.is_loaded_in_4bit = True


def _pack(module: Any, *, nested: bool) -> None:
    """Give a 4-bit module the tensors of a loaded one (bitsandbytes' QuantState)."""
    shape = torch.Size((module.out_features, module.in_features))
    blocks = -(-shape.numel() // _BLOCK)
    constants: Any = QuantState  # untyped in bitsandbytes
    second = constants(
        absmax=torch.empty(-(-blocks // _CONSTANTS_BLOCK)),
        blocksize=_CONSTANTS_BLOCK,
        code=torch.empty(256),
        dtype=torch.float32,
    )
    state = constants(
        absmax=torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=shape,
        dtype=module.compute_dtype,
        blocksize=_BLOCK,
        code=torch.empty(16),
        quant_type="nf4",
        offset=torch.empty(()) if nested else None,
        state2=second if nested else None,
    )
    weight: Any = torch.nn.Parameter(
        torch.empty(-(-shape.numel() // 2), 1, dtype=torch.uint8), requires_grad=False
    )
    # Attributes of Params4bit that peft and bitsandbytes read.
    weight.quant_state = state
    weight.compress_statistics = nested
    weight.quant_type = state.quant_type
    weight.blocksize = _BLOCK
    weight.quant_storage = torch.uint8
    weight.bnb_quantized = True
    module.weight = weight
    module.quant_state = state


def resident_bytes(module: torch.nn.Module) -> int:
    """Return the device bytes of all tensors that a module and its parts keep, each storage once."""
    storages = {}
    for tensor in _tensors(module):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = rounded(storage.nbytes())
    return sum(storages.values())


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    for part in module.modules():
        held = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
        for value in held:
            if isinstance(value, torch.Tensor):
                yield value
        for value in (*held, *(getattr(value, "quant_state", None) for value in held)):
            if isinstance(value, QuantState):
                yield from _constants(value)


def _constants(state: Any) -> Iterator[torch.Tensor]:
    second = state.state2
    values = [state.absmax, state.code, state.offset]
    values += [] if second is None else [second.absmax, second.code]
    yield from (value for value in values if isinstance(value, torch.Tensor))
