"""Shares the frozen weights of an adapted model out to ranks with FSDP2: a layer is whole only while it computes.

The adapter stays whole on every rank, and so do vectors, which take no memory worth a share. Each rank must run equally many
passes, because each pass gathers every layer once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_trainer.model.output_head import body, language_model

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def layers_of(model: Any) -> list[Any]:
    """Return the layers of a language model, each of which is gathered by itself: the outermost that can recompute."""
    found: list[Any] = []
    seen: set[int] = set()
    for module in body(language_model(model)).modules():
        if isinstance(module, GradientCheckpointingLayer) and id(module) not in seen:
            found.append(module)
            seen.update(map(id, module.modules()))
    return found


def share_out(model: Any, mesh: DeviceMesh) -> None:
    """Share the frozen matrices of `model` out to the ranks of `mesh`. Parameters on the meta device stay without values."""
    causal = language_model(model)
    whole = {value for value in causal.parameters() if value.requires_grad or value.ndim < 2}
    settings: Any = {"mesh": mesh, "ignored_params": whole}
    for layer in layers_of(model):
        fully_shard(layer, reshard_after_forward=True, **settings)
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    # The loss takes the head's weight itself, without a forward pass of the head, so `gathered` frees it.
    if head.weight is embedding.weight:
        fully_shard([embedding, head], reshard_after_forward=False, **settings)
    else:
        fully_shard(embedding, reshard_after_forward=True, **settings)
        fully_shard(head, reshard_after_forward=False, **settings)
    fully_shard(body(causal), **settings)
    for module in {id(each): each for each in (embedding, head)}.values():
        # Frozen embeddings have no backward pass, and the loss has mapped its gradient to the hidden states already.
        module.set_unshard_in_backward(False)
