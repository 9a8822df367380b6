"""The model of a run in a Kubeflow model registry."""

from __future__ import annotations

import json
import subprocess
from http.server import BaseHTTPRequestHandler

import pytest
from finetune_trainer.contract.tracking import ModelRegistry, TrackingResult
from finetune_trainer.errors import StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from finetune_trainer.tracking.client import TrackerClient
from finetune_trainer.tracking.model_registry import record_in_model_registry
from finetune_trainer.tracking.record import Record, make_record

from tests.support.servers.loopback import status
from tests.support.servers.model_registry import CLIENT_PYTHON, SmallRegistry, small_registry
from tests.support.tracking import UID, record, report

_READ = """
import asyncio, json, sys
from mr_openapi import ApiClient, Configuration, ModelRegistryServiceApi
async def main():
    async with ApiClient(Configuration(host=sys.argv[1])) as client:
        api = ModelRegistryServiceApi(client)
        model = await api.find_registered_model(name="team")
        version = await api.find_model_version(name=sys.argv[2], parent_resource_id=model.id)
        items = (await api.get_model_version_artifacts(version.id)).items
        artifact = items[0].actual_instance
        digest = artifact.custom_properties["finetune.artifact.merged.digest"].actual_instance.string_value
        print(json.dumps([len(items), artifact.uri, artifact.model_format_name, digest]))
asyncio.run(main())
"""


def send(address: str, sent: Record, environment: dict[str, str] | None = None) -> TrackingResult:
    """Register the model of a record."""
    registry = ModelRegistry(
        uri=address,
        registered_model="team",
        any_address=True,
        credentials_prefix=None if environment is None else "FINETUNE_MODEL_REGISTRY_",
    )
    network = Network(retry=RetryPolicy(30, sleep=lambda _seconds: None))
    with TrackerClient(
        "the model registry", registry, environment or {}, network, allow_private=False
    ) as client:
        return record_in_model_registry(client, registry, sent)


@pytest.mark.parametrize("versions", [("v1",), ("v1alpha3",), ("v1", "v1alpha3")])
def test_the_version_has_place_and_digests_of_the_artifact(versions: tuple[str, ...]) -> None:
    state = SmallRegistry(versions)
    with small_registry(state) as address:
        found = send(address, record())
    assert (found.recorded, found.model) == (True, f"team/bot-{UID[:8]}")
    [artifact], model = state.artifacts.values(), record().model
    assert model is not None
    assert (artifact["uri"], artifact["modelFormatName"]) == (model.uri, "safetensors")
    digest = artifact["customProperties"]["finetune.artifact.merged.digest"]
    assert digest == {"metadataType": "MetadataStringValue", "string_value": model.digest}
    [version] = state.versions.values()
    assert version["customProperties"]["finetune.uid"]["string_value"] == UID


def test_sending_it_again_changes_nothing_and_a_new_place_is_written() -> None:
    state = SmallRegistry()
    moved = report()
    for artifact in moved["merge"]["artifacts"]:
        artifact["uri"] = "s3://elsewhere/bot"
    with small_registry(state) as address:
        assert send(address, record()) == send(address, record())
        before = json.dumps([state.models, state.versions])
        send(address, make_record(moved, UID))
    assert json.dumps([state.models, state.versions]) == before
    assert [each["uri"] for each in state.artifacts.values()] == ["s3://elsewhere/bot"]


@pytest.mark.parametrize(
    "where", ["/registered_model?", "/registered_models", "/model_version?", "/versions", "/artifacts"]
)
def test_an_outage_at_any_step_leaves_one_of_each(where: str) -> None:
    state, count = SmallRegistry(), [0]

    def interfere(handler: BaseHTTPRequestHandler) -> bool:
        if where not in handler.path or count[0] >= 2:
            return False
        count[0] += 1
        status(503)(handler)
        return True

    state.interfere = interfere
    with small_registry(state) as address:
        assert send(address, record()).recorded
    assert count == [2]
    assert [len(kept) for kept in (state.models, state.versions, state.artifacts)] == [1, 1, 1]


def test_a_model_that_another_job_makes_at_the_same_time_is_shared() -> None:
    state = SmallRegistry()

    def interfere(handler: BaseHTTPRequestHandler) -> bool:
        if handler.command == "POST" and handler.path.endswith("/registered_models") and not state.models:
            state.models["1"] = {"id": "1", "name": "team"}
        return False

    state.interfere = interfere
    with small_registry(state) as address:
        assert send(address, record()).recorded
    assert [each["registeredModelId"] for each in state.versions.values()] == ["1"]


def test_two_jobs_of_one_name_have_versions_of_their_own() -> None:
    state = SmallRegistry()
    with small_registry(state) as address:
        send(address, record())
        send(address, record(uid="11111111-2222"))
    assert sorted(each["name"] for each in state.versions.values()) == [f"bot-{UID[:8]}", "bot-11111111"]
    assert len(state.models) == 1


def test_a_server_without_the_api_is_named() -> None:
    with small_registry(SmallRegistry(())) as address, pytest.raises(StageError) as caught:
        send(address, record())
    assert "no API below /api/model_registry of version v1 or v1alpha3" in caught.value.message


def test_a_run_that_published_nothing_registers_nothing() -> None:
    with small_registry() as address:
        found = send(address, make_record({**report(), "merge": None}, UID))
    assert not found.recorded
    assert found.message == "the run published no model"


def test_a_missing_secret_is_named() -> None:
    with small_registry() as address, pytest.raises(StageError) as caught:
        send(address, record(), {})
    assert "must exist and hold TOKEN, or USERNAME and PASSWORD, found neither" in caught.value.message


def test_the_token_is_sent() -> None:
    state = SmallRegistry()
    with small_registry(state) as address:
        send(address, record(), {"FINETUNE_MODEL_REGISTRY_TOKEN": "abc"})
    assert state.authorizations == {"Bearer abc"}


@pytest.mark.full
def test_the_own_client_of_the_registry_reads_what_was_sent() -> None:
    with small_registry() as address:
        send(address, record())
        command = [str(CLIENT_PYTHON), "-c", _READ, address, f"bot-{UID[:8]}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    model = record().model
    assert model is not None
    assert json.loads(done.stdout) == [1, model.uri, "safetensors", model.digest]
