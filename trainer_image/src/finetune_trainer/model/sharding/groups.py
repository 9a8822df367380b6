"""Shares the frozen weights of an adapted model out to ranks with FSDP2: a layer is whole only while it computes.

The adapter stays whole on every rank, and so do vectors, which take no memory worth a share. Each rank must run equally many
passes, because each pass gathers every layer once.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

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


def tied_layers(causal: Any) -> tuple[str, str] | None:
    """Return the names of two matrices of layers that are one, such as those of Zamba's shared blocks; None if none are.

    FSDP2 cannot gather a matrix with two layers.
    """
    names: dict[int, str] = {}
    for layer in layers_of(causal):
        names |= {id(value): "" for value in layer.parameters() if value.ndim > 1}
    for path, module in causal.named_modules():
        for own, value in module.named_parameters(recurse=False):
            first = names.get(id(value))
            if first:
                return first, f"{path}.{own}"
            if first is not None:
                names[id(value)] = f"{path}.{own}"
    return None


def trunk_of(causal: Any) -> Any:
    """Return the smallest part of a language model that has its layers and its embedding.

    Every way to compute hidden states goes through it. Some models, such as OPT, pass by the part around it.
    """
    inner = [*layers_of(causal), causal.get_input_embeddings()]
    found = causal
    while True:
        smaller = next((child for child in found.children() if _has(child, inner)), None)
        if smaller is None:
            return found
        found = smaller


def _has(module: Any, inner: list[Any]) -> bool:
    own = set(map(id, module.modules()))
    return all(id(each) in own for each in inner)


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
    trunk = trunk_of(causal)
    fully_shard(trunk, **settings)
    # transformers finds by the class what it may record, such as the logits of routers, and FSDP2 has made another class.
    _CAN_RECORD_REGISTRY[trunk] = getattr(trunk, "_can_record_outputs", None)
    # FSDP2 warns of an output that is a view: its hook would be lost if that were changed in place. No hidden states are, and
    # embeddings are not gathered for a backward pass.
    layers = "|".join({type(layer).__name__ for layer in layers_of(causal)})
    message = rf"FSDP2-wrapped module \((?!({layers})\)).* returned a view tensor"
    warnings.filterwarnings("ignore", message=message)
    for module in {id(each): each for each in (embedding, head)}.values():
        # Frozen embeddings have no backward pass, and the loss has mapped its gradient to the hidden states already.
        module.set_unshard_in_backward(False)
