"""What a rank gathers of a model whose frozen weights ranks share (`model.sharding`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitsandbytes.nn.modules import Linear4bit

from finetune_trainer.contract.memory_trace import SharedGroups
from finetune_trainer.model.packed_parameters import stacked_parameters
from finetune_trainer.model.sharding.groups import layers_of, tied_layers

if TYPE_CHECKING:
    from collections.abc import Collection
# A byte for the scale of a block of NF4. What remains of the constants stays whole on every rank.
_BLOCK = 64
_WIDTH = 2
"""Bytes of a weight that is not quantized."""


def shared_groups(model: Any) -> SharedGroups | None:
    """Return the groups of a `fake_model.quantized_structure`, each of which FSDP2 gathers by itself.

    None if the model has no layers that can be gathered one by one, layers that share weights, or 4-bit layers that are rows of
    a tensor of the files.
    """
    layers = layers_of(model)
    if not layers or tied_layers(model) or any(map(_is_cut, model.modules())):
        return None
    stacked = stacked_parameters(model)
    packed = {id(module.get_parameter(name.rpartition(".")[2])) for name, (module, _) in stacked.items()}
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return SharedGroups(
        layers=len(layers),
        layer_bytes=max(_bytes(layer, packed, dequantized=False) for layer in layers),
        dequantized_layer_bytes=max(_bytes(layer, packed, dequantized=True) for layer in layers),
        embedding_bytes=_WIDTH * embedding.numel(),
        head_bytes=0 if head is embedding else _WIDTH * head.numel(),
    )


def _is_cut(module: Any) -> bool:
    # As in `quantized_structure`.
    weight = getattr(module, "weight", None)
    return isinstance(module, Linear4bit) and not getattr(weight, "compress_statistics", True)


def _bytes(layer: Any, packed: Collection[int], *, dequantized: bool) -> int:
    """Return the bytes of the matrices of a layer. Vectors are whole on every rank.

    `packed` has the ids of the parameters of many matrices. They stay packed if linear layers are dequantized.
    """
    total = 0
    for module in layer.modules():
        in_4_bits = isinstance(module, Linear4bit) and not dequantized
        for own in module.parameters(recurse=False):
            if id(own) in packed or (in_4_bits and own.ndim > 1):
                total += -(-own.numel() // 2) + -(-own.numel() // _BLOCK)
            elif own.ndim > 1:
                total += _WIDTH * own.numel()
    return total
