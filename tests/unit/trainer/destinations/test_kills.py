"""SIGKILL at random moments of publishing: no reader ever sees a part, and the next try finishes with the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pytest
from finetune_trainer.destinations.local_artifact import LocalArtifact, read_artifact

from tests.support.publishing import (
    BUCKET,
    S3_ENVIRONMENT,
    SPEC,
    digests,
    make_folder,
    open_named,
    publish_until_killed,
    s3_client,
)
from tests.support.servers.loopback import s3_server
from tests.support.servers.registry import pull, pull_image, registry_server, unpack
from tests.support.servers.writable_hub import WritableHub, writable_hub

MOMENTS = 15
Visible = dict[str, str] | None
"""Digest of each file that a reader finds published; None if it finds no publication."""


@dataclass(frozen=True)
class Place:
    """A kind of destination: its entry of the run spec by number, its credentials, and what a reader sees there."""

    entry: Callable[[int], dict[str, Any]]
    environment: dict[str, str]
    read: Callable[[int], Visible]


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def directory(tmp_path: Path) -> Place:
    def read(number: int) -> Visible:
        folder = tmp_path / f"claim-{number}"
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
        except FileNotFoundError:
            return None
        return {name: sha256((folder / name).read_bytes()) for name in manifest["files"]}

    def entry(number: int) -> dict[str, Any]:
        return {
            "kind": "Directory",
            "name": "claim",
            "path": tmp_path / f"claim-{number}",
            "uri": "pvc://a/b",
        }

    return Place(lambda number: {**entry(number), "path": str(entry(number)["path"])}, {}, read)


def bucket(endpoint: str) -> Place:
    client = s3_client(endpoint)

    def read(number: int) -> Visible:
        try:
            manifest = json.loads(bytes(obstore.get(client, f"bot-{number}/manifest.json").bytes()))
        except FileNotFoundError:
            return None
        return {
            name: sha256(bytes(obstore.get(client, f"bot-{number}/{name}").bytes()))
            for name in manifest["files"]
        }

    def entry(number: int) -> dict[str, Any]:
        return {
            "kind": "ObjectStore",
            "name": "bucket",
            "uri": f"s3://{BUCKET}/bot-{number}",
            "endpoint": endpoint,
            "credentialsPrefix": "TEAM_",
        }

    return Place(entry, S3_ENVIRONMENT, read)


def registry(host: str) -> Place:
    def read(number: int) -> Visible:
        name = f"team/bot-{number}"
        image, pack = pull(host, name, "1-image"), pull(host, name, "1")
        if pack is None:
            # The image's tag comes first, and what it shows must be whole, too.
            return None if image is None else listed(unpack(host, name, pull_image(host, name, "1-image")))
        assert unpack(host, name, pull_image(host, name, "1-image")).keys() == unpack(host, name, pack).keys()
        return listed(unpack(host, name, pack))

    def listed(files: dict[str, bytes]) -> Visible:
        return {name: sha256(files[name]) for name in json.loads(files["manifest.json"])["files"]}

    def entry(number: int) -> dict[str, Any]:
        return {"kind": "Oci", "name": "registry", "reference": f"{host}/team/bot-{number}:1"}

    return Place(entry, {}, read)


def repository(hub: WritableHub, environment: dict[str, str]) -> Place:
    def read(number: int) -> Visible:
        seen = hub.visible(f"team/bot-{number}")
        seen.pop(".gitattributes", None)
        if not seen:
            return None
        # Every file that a reader sees counts here, not only those that the manifest lists.
        manifest = seen.pop("manifest.json", b"{}")
        assert set(json.loads(manifest).get("files", ())) == set(seen)
        return {name: sha256(content) for name, content in seen.items()}

    def entry(number: int) -> dict[str, Any]:
        return {
            "kind": "HuggingFace",
            "name": "hub",
            "repository": f"team/bot-{number}",
            "tokenVariable": "TEAM_TOKEN",
        }

    return Place(entry, environment, read)


@pytest.fixture(
    params=[
        "directory",
        "repository",
        pytest.param("bucket", marks=pytest.mark.object_stores),
        pytest.param("registry", marks=pytest.mark.object_stores),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "directory":
        yield directory(tmp_path)
        return
    if request.param == "repository":
        # Of the three large files, one goes in parts.
        hub = WritableHub(part_bytes=12 << 20)
        with writable_hub(hub) as environment:
            yield repository(hub, environment)
        return
    if request.param == "registry":
        with registry_server(tmp_path / "registry") as host:
            yield registry(host)
        return
    (tmp_path / "s3" / BUCKET).mkdir(parents=True)
    with s3_server(tmp_path / "s3") as endpoint:
        yield bucket(endpoint)


@contextmanager
def polled(read: Callable[[], Visible], artifact: LocalArtifact) -> Iterator[None]:
    """Read the destination all the time, and fail if a publication was ever seen without all its bytes."""
    wrong: list[Visible] = []
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            seen = read()
            if seen not in (None, digests(artifact)):
                wrong.append(seen)
            ended.wait(0.002)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_a_killed_publication_is_never_seen_in_part_and_the_next_try_finishes(
    place: Place, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "artifact", megabytes=20)
    artifact = read_artifact(folder, SPEC)
    calls = publish_until_killed(place.entry(0), folder, tmp_path / "journals-0", place.environment, 0)
    assert calls is not None
    assert place.read(0) == digests(artifact)
    moments = sorted(random.Random(2026).sample(range(1, calls + 1), MOMENTS))  # noqa: S311 -- a repeatable choice
    ended = 0
    for number, moment in enumerate(moments, start=1):
        journals = tmp_path / f"journals-{number}"
        with polled(lambda number=number: place.read(number), artifact):  # type: ignore[misc]
            made = publish_until_killed(place.entry(number), folder, journals, place.environment, moment)
            # An upload that lasts reports that it does, so a faster one than the first makes a few calls fewer.
            ended += made is not None
            open_named(place.entry(number), journals, place.environment).publish(artifact, lambda _: None)
        assert place.read(number) == digests(artifact)
    assert ended <= MOMENTS // 3, f"most of {MOMENTS} publications must have been killed, but {ended} ended"
