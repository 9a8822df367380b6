"""Registers the model of a run in a Kubeflow model registry through its REST API (v1alpha3).

Each object is looked up by its name before it is made, so the record can be sent again after a kill at any point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.tracking import MODEL_REGISTRY, TrackingResult
from finetune_trainer.tracking.client import TrackerClient

if TYPE_CHECKING:
    from finetune_trainer.contract.tracking import ModelRegistry
    from finetune_trainer.tracking.record import Model, Record

_API = "/api/model_registry/v1alpha3"
_FORMATS = {"Merged": "safetensors", "Adapter": "peft"}
_UID_DIGITS = 8


def record_in_model_registry(
    client: TrackerClient, registry: ModelRegistry, record: Record
) -> TrackingResult:
    """Register the model with its place and digests; return what the registry has now.

    Raises StageError if the registry does not take it.
    """
    model = record.model
    if model is None:
        return TrackingResult(kind=MODEL_REGISTRY, recorded=False, message="the run published no model")
    return client.retried(lambda: _register(client, registry.registered_model, record, model))


def _register(client: TrackerClient, name: str, record: Record, model: Model) -> TrackingResult:
    owner = client.get(f"{_API}/registered_model", name=name) or client.post(
        f"{_API}/registered_models", {"name": name}
    )
    parent = str(owner["id"])
    # The registry lets the team name versions. The uid's digits keep those of jobs with one name apart.
    version = f"{record.name}-{record.uid[:_UID_DIGITS]}"
    properties = _properties({**record.tags, **model.tags})
    made = client.get(f"{_API}/model_version", name=version, parentResourceId=parent) or client.post(
        f"{_API}/registered_models/{parent}/versions",
        {
            "name": version,
            "registeredModelId": parent,
            "description": f"FineTuneJob {record.tags.get('finetune.job', record.name)}",
            "customProperties": properties,
        },
    )
    identity = str(made["id"])
    _add_artifact(client, identity, version, model, properties)
    return TrackingResult(kind=MODEL_REGISTRY, recorded=True, run=identity, model=f"{name}/{version}")


def _add_artifact(
    client: TrackerClient, version: str, name: str, model: Model, properties: Mapping[str, Any]
) -> None:
    """Give the version its artifact, and a present one the place and digests of this publication."""
    content = {
        "artifactType": "model-artifact",
        "name": name,
        "uri": model.uri,
        "modelFormatName": _FORMATS[model.kind],
        "customProperties": properties,
    }
    listed = client.get(f"{_API}/model_versions/{version}/artifacts") or {}
    known = {each.get("name"): each for each in listed.get("items") or ()}
    if name not in known:
        client.post(f"{_API}/model_versions/{version}/artifacts", content)
    elif known[name].get("uri") != model.uri:
        changed = {member: value for member, value in content.items() if member != "name"}
        client.patch(f"{_API}/model_artifacts/{known[name]['id']}", changed)


def _properties(tags: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {
        name: {"metadataType": "MetadataStringValue", "string_value": value} for name, value in tags.items()
    }
