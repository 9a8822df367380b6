"""The names that weight files give to the tensors of the base model."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import revert_weight_conversion


def other_names(model: Any) -> dict[str, str | None]:
    """Return the names in weight files of this family that `model` itself does not have.

    Each stands with the tensor's name in the model, or None if transformers does more than rename it: GPT-NeoX's files
    call the head `embed_out.weight`, the model calls it `lm_head.weight`.
    """
    state = model.state_dict()
    places = {id(tensor): name for name, tensor in state.items()}
    return {
        name: places.get(id(tensor))
        for name, tensor in revert_weight_conversion(model, state).items()
        if name not in state
    }
