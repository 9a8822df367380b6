"""Publishing to a real S3 server on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import pytest
from finetune_trainer.contract.destinations import ObjectStoreDestination
from finetune_trainer.destinations.object_store import OWNER, ObjectStorePublisher
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from obstore.store import S3Store

from tests.support.publishing import BUCKET, OTHER, S3_ENVIRONMENT, SPEC, digests, make_artifact, s3_client
from tests.support.servers.loopback import SECRET_KEY, s3_server

pytestmark = pytest.mark.object_stores


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "s3"
    (folder / BUCKET).mkdir(parents=True)
    with s3_server(folder) as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: str) -> S3Store:
    return s3_client(endpoint)


def publisher(
    endpoint: str,
    tmp_path: Path,
    *,
    spec: str = SPEC,
    uri: str = f"s3://{BUCKET}/team/bot",
    environment: dict[str, str] | None = None,
    overwrite: bool = False,
    retry_seconds: float = 0,
) -> ObjectStorePublisher:
    destination = ObjectStoreDestination(
        kind="ObjectStore",
        name="bucket",
        uri=uri,
        endpoint=endpoint,
        credentials_prefix="TEAM_",
        overwrite=overwrite,
    )
    network = Network(retry=RetryPolicy(retry_seconds))
    given = S3_ENVIRONMENT if environment is None else environment
    return ObjectStorePublisher(
        destination, spec, tmp_path / "journal.json", given, network, allow_private=True
    )


def objects(client: S3Store) -> dict[str, str]:
    """Return the digest of every object of the bucket by key."""
    found = {}
    for entries in obstore.list(client):
        for entry in entries:
            content = bytes(obstore.get(client, entry["path"]).bytes())
            found[entry["path"]] = "sha256:" + hashlib.sha256(content).hexdigest()
    return found


def ignore(_done: int) -> None:
    pass


def test_every_file_and_the_manifest_arrive_and_nothing_else(
    endpoint: str, client: S3Store, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=40)  # two files need several parts
    sent: list[int] = []
    publisher(endpoint, tmp_path).publish(artifact, sent.append)
    found = objects(client)
    assert found.pop("team/bot/manifest.json") == "sha256:" + hashlib.sha256(artifact.manifest).hexdigest()
    assert found == {f"team/bot/{name}": digest for name, digest in digests(artifact).items()}
    assert sent == sorted(sent)
    assert sent[-1] == sum(file.bytes for file in artifact.files)
    assert publisher(endpoint, tmp_path).published() == json.loads(artifact.manifest)


def test_the_same_publication_is_not_sent_again(
    endpoint: str, client: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    publisher(endpoint, tmp_path).publish(artifact, ignore)
    before = obstore.head(client, "team/bot/manifest.json")

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be written")

    monkeypatch.setattr(obstore, "put", forbidden)
    publisher(endpoint, tmp_path / "other-workspace").publish(artifact, ignore)
    assert obstore.head(client, "team/bot/manifest.json") == before


def test_a_probe_leaves_nothing_behind(endpoint: str, client: S3Store, tmp_path: Path) -> None:
    publisher(endpoint, tmp_path).probe()
    assert objects(client) == {}


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_content_is_replaced_only_if_the_job_says_so(
    endpoint: str, client: S3Store, tmp_path: Path, *, overwrite: bool
) -> None:
    theirs = make_artifact(tmp_path / "theirs", spec=OTHER, seed=2)
    obstore.put(client, "team/bot/notes.txt", b"somebody's own")
    publisher(endpoint, tmp_path, spec=OTHER, overwrite=True).publish(theirs, ignore)
    before = objects(client)
    ours = make_artifact(tmp_path / "ours")
    mine = publisher(endpoint, tmp_path / "mine", overwrite=overwrite)
    if overwrite:
        mine.probe()
        mine.publish(ours, ignore)
        kept = {key.removeprefix("team/bot/"): digest for key, digest in objects(client).items()}
        assert kept.pop("notes.txt") == before["team/bot/notes.txt"]
        del kept["manifest.json"]
        assert kept == digests(ours)
        return
    actions: tuple[Callable[[], object], ...] = (mine.probe, partial(mine.publish, ours, ignore))
    for action in actions:
        with pytest.raises(StageError) as caught:
            action()
        assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
        assert "another job" in caught.value.message
    assert objects(client) == before


def test_objects_of_unknown_origin_are_not_touched(endpoint: str, client: S3Store, tmp_path: Path) -> None:
    obstore.put(client, "team/bot/merged/config.json", b"{}")
    with pytest.raises(StageError) as caught:
        publisher(endpoint, tmp_path).probe()
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert list(objects(client)) == ["team/bot/merged/config.json"]


def test_unfinished_files_of_another_job_are_not_touched(
    endpoint: str, client: S3Store, tmp_path: Path
) -> None:
    obstore.put(client, f"team/bot/{OWNER}", json.dumps({"specHash": OTHER}).encode())
    with pytest.raises(StageError, match="unfinished files of another job"):
        publisher(endpoint, tmp_path).publish(make_artifact(tmp_path / "artifact"), ignore)


def test_a_neighbor_whose_name_begins_alike_does_not_matter(
    endpoint: str, client: S3Store, tmp_path: Path
) -> None:
    obstore.put(client, "team/bot-2/manifest.json", b"{}")
    publisher(endpoint, tmp_path).probe()


@pytest.mark.parametrize(
    ("uri", "environment", "reason"),
    [
        (f"s3://{BUCKET}/x", {"TEAM_AWS_ACCESS_KEY_ID": "AKIAWRONG"}, Reason.DESTINATION_ACCESS_DENIED),
        (
            f"s3://{BUCKET}/x",
            {**S3_ENVIRONMENT, "TEAM_AWS_SECRET_ACCESS_KEY": "wrong"},
            Reason.DESTINATION_ACCESS_DENIED,
        ),
        ("s3://no-such-bucket/x", S3_ENVIRONMENT, Reason.DESTINATION_NOT_FOUND),
    ],
    ids=["half a key", "wrong key", "no bucket"],
)
def test_a_place_that_takes_nothing_has_a_reason(
    endpoint: str, tmp_path: Path, uri: str, environment: dict[str, str], reason: Reason
) -> None:
    with pytest.raises(StageError) as caught:
        publisher(endpoint, tmp_path, uri=uri, environment=environment).probe()
    assert caught.value.reason is reason
    assert "bucket" in caught.value.message
    assert SECRET_KEY not in caught.value.message


def test_a_store_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        publisher("http://127.0.0.1:1", tmp_path).probe()
    assert caught.value.reason is Reason.DESTINATION_UNAVAILABLE
    assert "publish to the destination bucket" in caught.value.message


def test_a_file_that_changed_at_the_store_is_sent_again(
    endpoint: str, client: S3Store, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    publisher(endpoint, tmp_path).publish(artifact, ignore)
    obstore.delete(client, "team/bot/manifest.json")
    obstore.put(client, f"team/bot/{OWNER}", json.dumps({"specHash": SPEC}).encode())
    name = "merged/model-00001-of-00002.safetensors"
    size = next(file.bytes for file in artifact.files if file.name == name)
    obstore.put(client, f"team/bot/{name}", b"\0" * size)
    publisher(endpoint, tmp_path).publish(artifact, ignore)
    assert objects(client)[f"team/bot/{name}"] == digests(artifact)[name]
