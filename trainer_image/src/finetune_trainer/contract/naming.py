"""The name of the base model, for people and adapter_config.json."""

from __future__ import annotations

from finetune_trainer.contract.run_spec import DirectorySource, HuggingFaceSource, RunSpec


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
