"""Publishing to Azure Blob Storage and Google Cloud Storage: the same rules as for S3."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from finetune_trainer.contract.destinations import ObjectStoreDestination
from finetune_trainer.destinations.object_store import ObjectStorePublisher
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.publishing import OTHER, SPEC, digests, make_artifact
from tests.support.servers import azure
from tests.support.servers.cloud_storage import CloudStorage, cloud_storage


@dataclass(frozen=True)
class Cloud:
    """A running store: the destination's URI and endpoint, its credentials, and its objects below the prefix."""

    uri: str
    endpoint: str
    environment: dict[str, str]
    objects: Callable[[], dict[str, bytes]]

    def publisher(self, tmp_path: Path, spec: str = SPEC) -> ObjectStorePublisher:
        destination = ObjectStoreDestination(
            kind="ObjectStore",
            name="cloud",
            uri=self.uri,
            endpoint=self.endpoint,
            credentials_prefix="TEAM_",
        )
        journal = tmp_path / "journal.json"
        network = Network(retry=RetryPolicy(0))
        return ObjectStorePublisher(destination, spec, journal, self.environment, network, allow_private=True)


@pytest.fixture(params=["azure", pytest.param("gcs", marks=pytest.mark.object_stores)])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cloud]:
    if request.param == "gcs":
        bucket = tmp_path / "gcs" / "models"
        bucket.mkdir(parents=True)
        with cloud_storage(tmp_path / "gcs") as (endpoint, storage):
            key = {"TEAM_GOOGLE_SERVICE_ACCOUNT_KEY": storage.key_file(endpoint)}
            yield Cloud("gs://models/team/bot", endpoint, key, lambda: files_of(bucket))
        return
    account = azure.AzureBlobs({"models": {}})
    with azure.azure_server(account) as endpoint:
        uri = f"az://{azure.ACCOUNT}/models/team/bot"
        key = {"TEAM_AZURE_STORAGE_ACCOUNT_KEY": azure.KEY}
        yield Cloud(uri, endpoint, key, lambda: dict(account.containers["models"]))


def files_of(bucket: Path) -> dict[str, bytes]:
    """Return the objects that a server keeps as files; its own folders are hidden."""
    found = {path.relative_to(bucket): path for path in bucket.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if not name.parts[0].startswith(".")}


def ignore(_done: int) -> None:
    pass


def test_every_file_and_the_manifest_arrive_and_nothing_else(cloud: Cloud, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=20)  # the largest file needs two parts
    place = cloud.publisher(tmp_path)
    place.probe()
    assert cloud.objects() == {}
    place.publish(artifact, ignore)
    found = cloud.objects()
    assert found.pop("team/bot/manifest.json") == artifact.manifest
    assert {name: "sha256:" + hashlib.sha256(content).hexdigest() for name, content in found.items()} == {
        f"team/bot/{name}": digest for name, digest in digests(artifact).items()
    }
    assert place.published() == json.loads(artifact.manifest)


def test_other_content_stays(cloud: Cloud, tmp_path: Path) -> None:
    cloud.publisher(tmp_path / "theirs", OTHER).publish(
        make_artifact(tmp_path / "a", spec=OTHER, megabytes=0.1), ignore
    )
    before = cloud.objects()
    mine = cloud.publisher(tmp_path / "mine")
    with pytest.raises(StageError) as caught:
        mine.publish(make_artifact(tmp_path / "b", megabytes=0.1), ignore)
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert cloud.objects() == before


def test_a_missing_bucket_and_a_wrong_key_have_their_reasons(cloud: Cloud, tmp_path: Path) -> None:
    missing = Cloud(cloud.uri.replace("models", "absent"), cloud.endpoint, cloud.environment, cloud.objects)
    with pytest.raises(StageError) as caught:
        missing.publisher(tmp_path).probe()
    assert caught.value.reason is Reason.DESTINATION_NOT_FOUND
    with pytest.raises(StageError) as caught:
        Cloud(cloud.uri, cloud.endpoint, {}, cloud.objects).publisher(tmp_path).probe()
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED


@pytest.mark.object_stores
def test_a_key_of_another_service_account_is_denied(tmp_path: Path) -> None:
    (tmp_path / "gcs" / "models").mkdir(parents=True)
    with cloud_storage(tmp_path / "gcs") as (endpoint, _):
        key = {"TEAM_GOOGLE_SERVICE_ACCOUNT_KEY": CloudStorage().key_file(endpoint)}
        with pytest.raises(StageError) as caught:
            Cloud("gs://models/team/bot", endpoint, key, dict).publisher(tmp_path).probe()
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED
