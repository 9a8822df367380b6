"""A large file that is killed on its way goes on with the parts that have arrived, on a real S3 server and on blocks."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import obstore
import pytest
from finetune_trainer.contract.destinations import ObjectStoreDestination
from finetune_trainer.destinations.http_client import HttpClient
from finetune_trainer.destinations.journal import UploadJournal
from finetune_trainer.destinations.local_artifact import LocalFile
from finetune_trainer.destinations.part_store import PartStore, part_store
from finetune_trainer.destinations.parted_upload import PART_BYTES, PartedUpload, abort_others, part_bytes
from finetune_trainer.destinations.store_http import StoreAccess, StoreHttp
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from obstore.exceptions import PermissionDeniedError
from obstore.store import AzureStore

from tests.support.publishing import (
    BUCKET,
    S3_ENVIRONMENT,
    make_artifact,
    open_named,
    publishing_process,
    s3_client,
)
from tests.support.servers import azure
from tests.support.servers.cloud_storage import cloud_storage
from tests.support.servers.loopback import http_server, s3_server, status
from tests.support.servers.troubled import response, troubled

pytestmark = pytest.mark.object_stores
LARGE = "merged/model-00001-of-00002.safetensors"
PARTS_SENT_AGAIN = 5
"""Four are under way at any time, and one may have arrived without being listed yet."""


@dataclass(frozen=True)
class Cloud:
    """A running store at `origin`; its entry of the run spec behind another origin, and the bytes of an object."""

    origin: str
    entry: Callable[[str], dict[str, Any]]
    environment: dict[str, str]
    read: Callable[[str], bytes]

    @contextmanager
    def parts(self) -> Iterator[tuple[StoreHttp, PartStore]]:
        """Open the calls about parts."""
        destination = ObjectStoreDestination.model_validate(self.entry(self.origin))
        target = destination_target("cloud")
        access = StoreAccess.of(destination, target, self.environment)
        assert access is not None
        with access.opened(target, Network(retry=RetryPolicy(0)), allow_private=True) as client:
            yield client, part_store(client, access.kind)


def entry(uri: str, endpoint: str) -> dict[str, Any]:
    return {
        "kind": "ObjectStore",
        "name": "cloud",
        "uri": uri,
        "endpoint": endpoint,
        "credentialsPrefix": "TEAM_",
    }


@pytest.fixture(params=["s3", "azure", "gcs"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cloud]:
    if request.param == "azure":
        account = azure.AzureBlobs({"models": {}})
        with azure.azure_server(account) as endpoint:
            yield Cloud(
                endpoint.removesuffix(f"/{azure.ACCOUNT}"),
                lambda origin: entry(f"az://{azure.ACCOUNT}/models/bot", f"{origin}/{azure.ACCOUNT}"),
                {"TEAM_AZURE_STORAGE_ACCOUNT_KEY": azure.KEY},
                lambda name: account.containers["models"][f"bot/{name}"],
            )
        return
    (tmp_path / "s3" / BUCKET).mkdir(parents=True)
    if request.param == "gcs":
        with cloud_storage(tmp_path / "s3") as (endpoint, storage):
            yield Cloud(
                endpoint,
                lambda origin: entry(f"gs://{BUCKET}/bot", origin),
                {"TEAM_GOOGLE_SERVICE_ACCOUNT_KEY": storage.key_file(endpoint)},
                lambda name: (tmp_path / "s3" / BUCKET / "bot" / name).read_bytes(),
            )
        return
    with s3_server(tmp_path / "s3") as endpoint:
        yield Cloud(
            endpoint,
            lambda origin: entry(f"s3://{BUCKET}/bot", origin),
            S3_ENVIRONMENT,
            lambda name: bytes(obstore.get(s3_client(endpoint), f"bot/{name}").bytes()),
        )


def remember(tmp_path: Path, uri: dict[str, Any], digest: str, upload: str) -> None:
    """Write down that an upload of the large file has begun."""
    journal = UploadJournal(tmp_path / "j" / "cloud.json", f"{uri['endpoint']} {uri['uri']}")
    journal.begin(LARGE, digest, upload)


def test_a_file_killed_on_its_way_sends_only_a_few_parts_again(cloud: Cloud, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=8 * 16)
    large = next(file for file in artifact.files if file.name == LARGE)
    before_large = sum(file.bytes for file in artifact.files if file.name < LARGE)
    limit = before_large + large.bytes * 9 // 10
    process: list[subprocess.Popen[bytes]] = []

    def kill(received: int) -> bytes | None:
        if received < limit or process[0].returncode is not None:
            return None
        process[0].kill()
        return response("503 Service Unavailable")

    with troubled(cloud.origin, kill) as (relay, trouble):
        place = cloud.entry(relay)
        process.append(publishing_process(place, tmp_path / "artifact", tmp_path / "j", cloud.environment))
        assert process[0].wait(120) == -9
        before = trouble.received
        open_named(place, tmp_path / "j", cloud.environment).publish(artifact, lambda _: None)
    rest = sum(file.bytes for file in artifact.files) - limit
    assert trouble.received - before < rest + (PARTS_SENT_AGAIN + 1) * PART_BYTES
    assert "sha256:" + hashlib.sha256(cloud.read(LARGE)).hexdigest() == large.digest
    assert cloud.read("manifest.json") == artifact.manifest


def test_uploads_that_nobody_finishes_are_given_up(cloud: Cloud, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    foreign = "bot/somebody-elses.bin"
    with cloud.parts() as (_, store):
        lost, other = store.begin(f"bot/{LARGE}"), store.begin(foreign)
        store.put(f"bot/{LARGE}", lost, 1, bytes(5 << 20))
        open_named(cloud.entry(cloud.origin), tmp_path / "j", cloud.environment).publish(
            artifact, lambda _: None
        )
        left = store.unfinished("bot/")
        wanted = [] if cloud.entry("")["uri"].startswith("az:") else [(foreign, other)]
        assert left == wanted, "an upload of another file is not ours"
        assert not store.parts(f"bot/{LARGE}", lost)


def test_an_upload_that_the_store_has_forgotten_begins_again(cloud: Cloud, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=17)
    with cloud.parts() as (_, store):
        forgotten = store.begin(f"bot/{LARGE}")
        store.abort(f"bot/{LARGE}", forgotten)
    place = open_named(cloud.entry(cloud.origin), tmp_path / "j", cloud.environment)
    large = next(file for file in artifact.files if file.name == LARGE)
    uri = cloud.entry(cloud.origin)
    remember(tmp_path, uri, large.digest, forgotten)
    place.publish(artifact, lambda _: None)
    assert "sha256:" + hashlib.sha256(cloud.read(LARGE)).hexdigest() == large.digest


def test_parts_that_have_other_sizes_or_belong_to_others_are_sent_again(cloud: Cloud, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=17)
    large = next(file for file in artifact.files if file.name == LARGE)
    with cloud.parts() as (_, store):
        begun = store.begin(f"bot/{LARGE}")
        store.put(f"bot/{LARGE}", begun, 1, bytes(6 << 20))  # shorter than a part of this file
        parts = store.parts(f"bot/{LARGE}", begun)
        assert parts is not None
        assert [size for _, size in parts.values()] == [6 << 20]
        another = store.begin(f"bot/{LARGE}")
        assert not store.parts(f"bot/{LARGE}", another)
    uri = cloud.entry(cloud.origin)
    remember(tmp_path, uri, large.digest, begun)
    open_named(uri, tmp_path / "j", cloud.environment).publish(artifact, lambda _: None)
    assert "sha256:" + hashlib.sha256(cloud.read(LARGE)).hexdigest() == large.digest


def test_blocks_that_obstore_has_left_are_no_obstacle() -> None:
    account = azure.AzureBlobs({"models": {}})

    def without_lists(handler: BaseHTTPRequestHandler) -> None:
        if "comp=blocklist" in handler.path and handler.command == "PUT":
            status(403)(handler)
        else:
            account(handler)

    with http_server(without_lists, host="127.0.0.1") as origin:
        settings: Any = {
            "account_name": azure.ACCOUNT,
            "account_key": azure.KEY,
            "endpoint": f"{origin}/{azure.ACCOUNT}",
        }
        client = AzureStore("models", config=settings, client_options={"allow_http": True})
        with pytest.raises(PermissionDeniedError):
            obstore.put(client, "bot/large", bytes(11 << 20), use_multipart=True)
    with azure.azure_server(account) as endpoint:
        place = entry(f"az://{azure.ACCOUNT}/models/bot", endpoint)
        cloud = Cloud("", lambda _: place, {"TEAM_AZURE_STORAGE_ACCOUNT_KEY": azure.KEY}, lambda _: b"")
        with cloud.parts() as (_, store):
            upload = store.begin("bot/large")
            name = store.put("bot/large", upload, 1, b"content")
            assert store.parts("bot/large", upload) == {1: (name, 7)}
            store.finish("bot/large", upload, [name])
    assert account.containers["models"] == {"bot/large": b"content"}


# Its methods have the parameters of the protocol.
# ruff: noqa: ARG002
class DenyingStore:
    """A store with a policy that denies some of the calls. It keeps the parts of its uploads."""

    def __init__(self, denied: Collection[str]) -> None:
        self.denied = denied
        self.calls: list[str] = []
        self.uploads: dict[str, dict[int, bytes]] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.denied:
            raise StageError(Reason.DESTINATION_ACCESS_DENIED, "denied")

    def begin(self, key: str) -> str:
        self._call("begin")
        self.uploads[f"{key}-{len(self.uploads)}"] = {}
        return list(self.uploads)[-1]

    def put(self, key: str, upload: str, number: int, content: bytes) -> str:
        self._call("put")
        self.uploads[upload][number] = content
        return str(number)

    def parts(self, key: str, upload: str) -> dict[int, tuple[str, int]] | None:
        self._call("parts")
        return {number: (str(number), len(part)) for number, part in self.uploads[upload].items()}

    def finish(self, key: str, upload: str, names: Sequence[str]) -> None:
        self._call("finish")

    def abort(self, key: str, upload: str) -> None:
        self._call("abort")
        del self.uploads[upload]

    def unfinished(self, prefix: str) -> list[tuple[str, str]]:
        self._call("unfinished")
        return []


def denied(names: Collection[str], tmp_path: Path) -> tuple[DenyingStore, PartedUpload, UploadJournal]:
    """Return an upload of three parts to a store that denies calls."""
    store = DenyingStore(names)
    path = tmp_path / "large"
    path.write_bytes(bytes(2 * PART_BYTES + 1))
    file = LocalFile("large", path, "sha256:1", 2 * PART_BYTES + 1)
    journal = UploadJournal(tmp_path / "journal.json", "place")

    @contextmanager
    def opened() -> Iterator[tuple[HttpClient, PartStore]]:
        network = Network(retry=RetryPolicy(0))
        with HttpClient(destination_target("cloud"), network, allow_private=True) as client:
            yield client, store

    return store, PartedUpload(opened, "bot/large", file, journal, lambda _: None), journal


@pytest.mark.parametrize("names", [["parts"], ["parts", "abort"]])
def test_a_policy_that_lists_no_parts_costs_them_but_not_the_publication(
    tmp_path: Path, names: list[str]
) -> None:
    store, upload, journal = denied(names, tmp_path)
    journal.begin("large", "sha256:1", store.begin("bot/large"))
    upload.send()
    assert store.calls.count("abort") == 1
    assert store.calls.count("put") == 3
    assert len(store.uploads) == len(names), "the first upload stays if it cannot be given up"
    *_, parts = store.uploads.values()
    assert sorted(len(part) for part in parts.values()) == [1, PART_BYTES, PART_BYTES]


def test_a_part_that_fails_for_good_ends_the_upload_with_its_reason(tmp_path: Path) -> None:
    store, upload, journal = denied(["put"], tmp_path)
    with pytest.raises(StageError) as caught:
        upload.send()
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED
    assert "finish" not in store.calls
    assert journal.begun("large", "sha256:1") is not None, "a renewed credential goes on with it"


def test_a_policy_that_lists_no_uploads_is_no_trouble(tmp_path: Path) -> None:
    store, _, _ = denied(["unfinished"], tmp_path)
    abort_others(store, "bot/", {"bot/large"}, ())
    assert store.calls == ["unfinished"]


@pytest.mark.parametrize("size", [1, PART_BYTES, 14 << 30, 144 << 30, 5 << 40])
def test_every_file_fits_in_the_parts_that_stores_take(size: int) -> None:
    assert part_bytes(size) >= PART_BYTES
    assert -(-size // part_bytes(size)) <= 10_000
