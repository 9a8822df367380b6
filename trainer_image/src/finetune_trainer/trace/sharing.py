"""What a rank gathers of a model whose frozen weights ranks share (`model.sharding`)."""

from __future__ import annotations

from typing import Any

from bitsandbytes.nn.modules import Linear4bit

from finetune_trainer.contract.memory_trace import SharedGroups
from finetune_trainer.model.packed_parameters import packed_names
from finetune_trainer.model.sharding.groups import layers_of

# A byte for the scale of a block of NF4. What remains of the constants stays whole on every rank.
_BLOCK = 64
_WIDTH = 2
"""Bytes of a weight that is not quantized."""


def shared_groups(model: Any) -> SharedGroups | None:
    """Return the groups of a `fake_model.quantized_structure`, each of which FSDP2 gathers by itself.

    None if the model has weights that cannot be shared, or no layers that can be gathered one by one.
    """
    layers = layers_of(model)
    if packed_names(model) or not layers:
        return None
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return SharedGroups(
        layers=len(layers),
        layer_bytes=max(_bytes(layer, dequantized=False) for layer in layers),
        dequantized_layer_bytes=max(_bytes(layer, dequantized=True) for layer in layers),
        embedding_bytes=_WIDTH * embedding.numel(),
        head_bytes=0 if head is embedding else _WIDTH * head.numel(),
    )


def _bytes(layer: Any, *, dequantized: bool) -> int:
    """Return the bytes of the matrices of a layer. Vectors are whole on every rank."""
    total = 0
    for module in layer.modules():
        if isinstance(module, Linear4bit) and not dequantized:
            weights = module.in_features * module.out_features
            total += -(-weights // 2) + -(-weights // _BLOCK)
        else:
            total += sum(_WIDTH * own.numel() for own in module.parameters(recurse=False) if own.ndim > 1)
    return total
