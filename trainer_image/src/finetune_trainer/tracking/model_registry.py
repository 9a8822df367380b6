"""Registers the model of a run in a Kubeflow model registry through its REST API, version v1 or v1alpha3.

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

_API = "/api/model_registry"
_VERSIONS = ("v1", "v1alpha3")
"""Newest first. Their members are the same for what is written here."""
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
    api = _served(client)
    owner = _registered_model(client, api, name)
    parent = str(owner["id"])
    # The registry lets the team name versions. The uid's digits keep those of jobs with one name apart.
    version = f"{record.name}-{record.uid[:_UID_DIGITS]}"
    properties = _properties({**record.tags, **model.tags})
    made = client.get(f"{api}/model_version", name=version, parentResourceId=parent) or client.post(
        f"{api}/registered_models/{parent}/versions",
        {
            "name": version,
            "registeredModelId": parent,
            "description": f"FineTuneJob {record.tags.get('finetune.job', record.name)}",
            "customProperties": properties,
        },
    )
    identity = str(made["id"])
    _add_artifact(client, f"{api}/model_versions/{identity}/artifacts", version, model, properties)
    return TrackingResult(kind=MODEL_REGISTRY, recorded=True, run=identity, model=f"{name}/{version}")


def _registered_model(client: TrackerClient, api: str, name: str) -> dict[str, Any]:
    """Return the registered model, which is made if it is missing. Another job may make it at the same time."""
    for _ in range(2):
        found = client.get(f"{api}/registered_model", name=name)
        made = client.try_post(f"{api}/registered_models", {"name": name}) if found is None else found
        if made is not None:
            return made
    raise client.unavailable(f"a registered model {name!r} that it has and does not show")


def _served(client: TrackerClient) -> str:
    """Return the path of the newest version of the API that the registry serves."""
    for version in _VERSIONS:
        # Status 404 for a single model would not tell if the model or the version is missing.
        if client.get(f"{_API}/{version}/registered_models", pageSize="1") is not None:
            return f"{_API}/{version}"
    raise client.unavailable(f"no API below {_API} of version {' or '.join(_VERSIONS)}")


def _add_artifact(
    client: TrackerClient, listing: str, name: str, model: Model, properties: Mapping[str, Any]
) -> None:
    """Give a version its artifact, and a present one the place and digests of this publication.

    `listing` is the path of the version's artifacts.
    """
    content = {
        "artifactType": "model-artifact",
        "name": name,
        "uri": model.uri,
        "modelFormatName": _FORMATS[model.kind],
        "customProperties": properties,
    }
    listed = client.get(listing) or {}
    known = {each.get("name"): each for each in listed.get("items") or ()}
    if name not in known:
        client.post(listing, content)
    elif known[name].get("uri") != model.uri:
        changed = {member: value for member, value in content.items() if member != "name"}
        artifacts = f"{listing.partition('/model_versions/')[0]}/model_artifacts"
        client.patch(f"{artifacts}/{known[name]['id']}", changed)


def _properties(tags: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {
        name: {"metadataType": "MetadataStringValue", "string_value": value} for name, value in tags.items()
    }
