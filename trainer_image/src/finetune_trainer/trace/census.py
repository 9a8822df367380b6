"""Counts the modules, parameters and bytes of a quantized model by their kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from bitsandbytes.nn.modules import Linear4bit

from finetune_trainer.model.adapter_targets import adapted_modules
from finetune_trainer.model.packed_parameters import packed_names
from finetune_trainer.trace.fake_model import adaptable_modules

if TYPE_CHECKING:
    from finetune_trainer.trace.packed import PackedSizes

Kind = Literal["Quantized", "Embeddings", "Experts", "Other"]
# NF4 with double quantization (bitsandbytes' quantize_4bit): half a byte for a weight, a byte for 64 of them, and four
# bytes for 256 blocks of 64.
_BLOCK = 64
_CONSTANTS_BLOCK = 256
_WIDTH = 2
"""Bytes of a parameter that is not quantized."""


@dataclass(frozen=True)
class Group:
    """The modules of one kind, with their parameters and the bytes that these take on the GPU."""

    modules: int = 0
    parameters: int = 0
    bytes: int = 0

    def plus(self, parameters: int, size: int) -> Group:
        """Return the group with one more module."""
        return Group(self.modules + 1, self.parameters + parameters, self.bytes + size)


@dataclass(frozen=True)
class Census:
    """The groups of a model by kind, and the number of its modules that get an adapter.

    Embeddings include the output matrix if it is not tied. Experts are all packed parameters, which are in NF4, too.
    Those of `Conv1D` are among them.
    """

    groups: dict[Kind, Group]
    adapted: int


def take_census(model: Any, targets: str, packed: PackedSizes) -> Census:
    """Count a `fake_model.quantized_structure`; `targets` is the spec's targetModules. A tied tensor counts once.

    `packed` has the sizes of the model's packed parameters.
    """
    groups: dict[Kind, Group] = {}
    names = packed_names(model)
    seen = {id(model.get_parameter(name)) for name in names}
    if names:
        groups["Experts"] = Group(packed.modules, packed.weights, packed.bytes)
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for module in model.modules():
        own = [tensor for tensor in module.parameters(recurse=False) if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in own}
        if not own:
            continue
        count = sum(tensor.numel() for tensor in own)
        if isinstance(module, Linear4bit):
            weights = module.in_features * module.out_features
            biases = 0 if module.bias is None else module.bias.numel()
            weight: Any = module.weight
            size = _packed_bytes(weights, nested=weight.compress_statistics) + _WIDTH * biases
            groups["Quantized"] = groups.get("Quantized", Group()).plus(weights + biases, size)
            continue
        embeds = id(module) in ends or isinstance(module, torch.nn.Embedding)
        kind: Kind = "Embeddings" if embeds else "Other"
        groups[kind] = groups.get(kind, Group()).plus(count, _WIDTH * count)
    return Census(groups, len(adapted_modules(targets, adaptable_modules(model))) + packed.adapted)


def _packed_bytes(weights: int, *, nested: bool) -> int:
    blocks = -(-weights // _BLOCK)
    if not nested:
        return -(-weights // 2) + 4 * blocks
    return -(-weights // 2) + blocks + 4 * -(-blocks // _CONSTANTS_BLOCK)
