"""Large files on their way to the storage of a hub: outages, addresses that end, and answers of no use."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.destinations.local_artifact import read_artifact
from finetune_trainer.errors import Reason

from tests.support.hub_destinations import Pauses, answers, caught, hub_publisher
from tests.support.publishing import SPEC, digests, make_artifact, make_folder
from tests.support.servers.writable_hub import WritableHub, send_json, writable_hub

PART = 300_000


@pytest.fixture
def hub() -> WritableHub:
    return WritableHub(part_bytes=PART)


@pytest.fixture
def environment(hub: WritableHub) -> Iterator[dict[str, str]]:
    with writable_hub(hub) as environment:
        yield environment


def ignore(_done: int) -> None:
    pass


def test_a_hub_that_answers_503_for_a_while_is_waited_for(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    for path in ("/preupload/", "/objects/batch", "/parts/", "/objects/", "/commit/", "/complete-multipart/"):
        hub.repositories.clear()
        hub.objects.clear()
        hub.parts.clear()
        pauses = Pauses(600)
        hub.interfere = answers(503, path, 3)
        hub_publisher(environment, tmp_path, pauses).publish(artifact, ignore)
        assert len(pauses.taken) == 3, path
        assert set(digests(artifact)) < set(hub.visible("team/bot"))


def test_a_token_that_expires_in_the_middle_costs_no_second_upload(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=1)
    hub.interfere = answers(401, "/objects/batch", 100, skip=2)
    error = caught(lambda: hub_publisher(environment, tmp_path).publish(artifact, ignore))
    assert error.reason is Reason.DESTINATION_ACCESS_DENIED
    assert set(hub.visible("team/bot")) == {".gitattributes"}
    before = hub.received
    assert before
    hub.interfere = lambda _: False
    hub_publisher(environment, tmp_path).publish(artifact, ignore)
    large = sum(file.bytes for file in artifact.files if file.name.endswith(".safetensors"))
    assert hub.received == large, "a file that had arrived was sent again"


def test_an_outage_in_a_part_costs_no_part_before_it(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=1)
    hub.interfere = answers(500, "/parts/", 1, skip=2)
    hub_publisher(environment, tmp_path, Pauses(600)).publish(artifact, ignore)
    large = sum(file.bytes for file in artifact.files if file.name.endswith(".safetensors"))
    assert hub.received == large + PART


def test_an_address_of_the_storage_that_has_expired_is_asked_for_again(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    hub.interfere = answers(403, "/parts/", 1, skip=1)
    pauses = Pauses(600)
    hub_publisher(environment, tmp_path, pauses).publish(artifact, ignore)
    assert len(pauses.taken) == 1
    assert set(digests(artifact)) < set(hub.visible("team/bot"))


def test_a_storage_that_reports_success_for_lost_bytes_is_not_believed(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=0.1)
    hub.forgets = True
    error = caught(lambda: hub_publisher(environment, tmp_path, Pauses(20)).publish(artifact, ignore))
    assert error.reason is Reason.DESTINATION_UNAVAILABLE
    assert set(hub.visible("team/bot")) == {".gitattributes"}


@pytest.mark.parametrize(
    "change",
    [
        {"header": {"chunk_size": "100"}},
        {"header": {"chunk_size": "0", "1": "/parts/a"}},
        {"header": {"chunk_size": "many", "1": "/parts/a"}},
        {"href": None},
        {"href": "ftp://storage/a"},
    ],
)
def test_instructions_of_no_use_end_with_their_reason(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path, change: dict[str, Any]
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=0.1)

    def misdirect(handler: BaseHTTPRequestHandler) -> bool:
        if "/objects/batch" not in handler.path:
            return False
        oid = next(file.digest for file in artifact.files if "adapter_model" in file.name)
        upload = {"href": "/objects/a", **change}
        entry = {"oid": oid.removeprefix("sha256:"), "size": 1, "actions": {"upload": upload}}
        send_json(handler, {"objects": [entry]})
        return True

    hub.interfere = misdirect
    error = caught(lambda: hub_publisher(environment, tmp_path).publish(artifact, ignore))
    assert error.reason is Reason.DESTINATION_UNAVAILABLE
    assert hub.received == 0


@pytest.mark.parametrize(
    ("code", "reason"), [(403, Reason.DESTINATION_ACCESS_DENIED), (500, Reason.DESTINATION_UNAVAILABLE)]
)
def test_a_file_that_the_hub_refuses_has_its_reason(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path, code: int, reason: Reason
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=0.1)

    def refuse(handler: BaseHTTPRequestHandler) -> bool:
        if "/objects/batch" not in handler.path:
            return False
        oid = next(file.digest for file in artifact.files if "adapter_model" in file.name)
        error = {"code": code, "message": "no"}
        send_json(handler, {"objects": [{"oid": oid.removeprefix("sha256:"), "size": 1, "error": error}]})
        return True

    hub.interfere = refuse
    assert caught(lambda: hub_publisher(environment, tmp_path).publish(artifact, ignore)).reason is reason


def test_an_empty_file_and_one_with_an_odd_name_arrive(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "artifact", megabytes=0.1)
    names = ("merged/empty.bin", "report/ä b#c?d%20.txt", "report/ä b#c?d%20.bin")
    for name in names:
        (folder / name).write_bytes(b"" if "empty" in name else b"text")
    artifact = read_artifact(folder, SPEC)
    hub_publisher(environment, tmp_path).publish(artifact, ignore)
    assert set(names) < set(hub.visible("team/bot"))
