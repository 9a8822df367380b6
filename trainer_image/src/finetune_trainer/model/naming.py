"""Names of the base model: for people and adapter_config.json, and those that weight files give to its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.core_model_loading import revert_weight_conversion

from finetune_trainer.contract.run_spec import DirectorySource, HuggingFaceSource

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec


def base_model_name(run: RunSpec) -> str:
    """Name the base model for people and for adapter_config.json: never by a path of this machine.

    That is the repository on the hub, or the last part of a folder's path or of an object store's URI.
    """
    source = run.model.source
    if isinstance(source, HuggingFaceSource):
        return source.repository
    if isinstance(source, DirectorySource):
        return source.path.name
    return source.uri.rstrip("/").rpartition("/")[2]


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
