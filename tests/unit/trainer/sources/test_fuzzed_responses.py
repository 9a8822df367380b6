"""Two thousand responses of dataset sources, most of them faulty, each with exactly one expected end."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from random import Random
from typing import Any

import httpcore
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.run_spec import DatasetSource, UrlSource
from finetune_trainer.contract.run_spec import Limits as RunLimits
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources import dataset, object_store
from finetune_trainer.sources.dataset import fetch_dataset
from finetune_trainer.sources.http import download
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.servers import source_faults as faults
from tests.support.servers import source_redirects as redirects
from tests.support.servers import source_responses as answers
from tests.support.servers import source_stores as stores
from tests.support.servers.loopback import Answer, Script, free_port, http_server
from tests.support.servers.response_documents import MARK
from tests.support.servers.wire import Case, World

ANSWERS = 2_000
PAUSE_SECONDS = 25
PUBLIC = "93.184.216.34"
NAMES = {
    "files.example": [PUBLIC],
    "other.example": [PUBLIC],
    "inside.example": ["10.0.0.7"],
    "metadata.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:127.0.0.1"],
}
# The number of responses per mutation. Mutations that wait for a deadline make few.
# The names of the mutations are seeds of their random choices.
SHARES: dict[Callable[[World], Case], int] = {
    answers.plain_file: 40,
    answers.empty_file: 10,
    answers.file_after_interim_answers: 20,
    answers.file_with_loose_line_ends: 20,
    answers.file_with_large_headers: 20,
    answers.file_that_looks_like_markup: 50,
    answers.file_shorter_than_sent: 20,
    answers.s3_refusal: 110,
    answers.gcs_xml_refusal: 50,
    answers.gcs_json_refusal: 50,
    answers.azure_refusal: 90,
    answers.refusal_in_gzip: 30,
    answers.refusal_cut_off: 40,
    answers.refusal_without_end: 30,
    answers.refusal_as_success: 40,
    answers.bare_status: 80,
    answers.outage: 40,
    answers.outage_that_passes: 40,
    answers.outage_that_turns_into_a_refusal: 20,
    answers.sign_in_page: 30,
    redirects.redirect_to_sign_in: 10,
    redirects.redirects: 60,
    redirects.redirect_on_a_kept_connection: 20,
    redirects.redirect_with_other_letters: 5,
    redirects.redirect_to_a_refusal: 30,
    redirects.redirect_loop: 30,
    redirects.redirect_without_location: 30,
    redirects.redirect_to_nonsense: 30,
    redirects.redirect_into_the_void: 10,
    redirects.public_file: 10,
    redirects.public_redirect: 10,
    redirects.public_redirect_inside: 50,
    redirects.public_redirect_to_http: 10,
    redirects.public_redirect_to_another_name: 5,
    redirects.private_url: 30,
    faults.cut_with_ranges: 40,
    faults.cut_without_ranges: 40,
    faults.cut_chunks: 20,
    faults.cut_always: 20,
    faults.cut_then_refused: 20,
    faults.cut_then_changed: 20,
    faults.cut_then_lied_to: 40,
    faults.cut_then_no_such_range: 10,
    faults.part_too_long: 10,
    faults.part_for_a_plain_request: 20,
    faults.second_process: 20,
    faults.gzip_coding: 30,
    faults.gzip_label_alone: 20,
    faults.gzip_coding_resumed: 20,
    faults.gzip_coding_broken: 30,
    faults.other_coding: 20,
    faults.gzip_bomb: 10,
    faults.oversized_by_header: 20,
    faults.oversized_by_stream: 20,
    faults.oversized_by_range: 10,
    faults.largest_file: 10,
    faults.garbage: 70,
    faults.garbage_that_passes: 40,
    faults.reset: 20,
    faults.reset_that_passes: 20,
    faults.every_fault_in_turn: 20,
    faults.slow_header: 2,
    faults.slow_body: 2,
    faults.slow_file_in_time: 6,
    stores.store_refusal: 120,
    stores.store_outage_that_passes: 20,
    stores.store_object: 20,
    stores.store_object_that_changed: 10,
    stores.store_oversized: 10,
    stores.store_garbage: 20,
}


class Network:
    """The network of this test: a private server, which is also a public Internet server over TLS.

    Names below `.example` and the single public address are fake, and connections to this address reach the server.
    The operating system handles everything else. `strayed` are the addresses that a public download connected to.
    """

    def __init__(self, stack: ExitStack) -> None:
        authority = trustme.CA()
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("files.example").configure_cert(server_side)
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)
        self.script = Script([])
        self.inside = stack.enter_context(http_server(self._answer, host="127.0.0.1"))
        behind_tls = stack.enter_context(http_server(self._answer, context=server_side))
        self._port = int(behind_tls.rpartition(":")[2])
        self.closed = f"http://127.0.0.1:{free_port()}"
        self.public = False
        self.strayed: list[str] = []
        self._resolve = socket.getaddrinfo
        self._connect = httpcore.SyncBackend().connect_tcp

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.script(handler)

    def resolve(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        """Replace socket.getaddrinfo."""
        if not isinstance(host, str) or not host.lower().endswith(".example"):
            return self._resolve(host, port, *arguments, **options)
        if host.lower() not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (family[":" in address], socket.SOCK_STREAM, 6, "", (address, port))
            for address in NAMES[host.lower()]
        ]

    def connect(self, host: str, port: int, *arguments: Any) -> Any:
        """Replace httpcore's connect."""
        if host == PUBLIC:
            return self._connect("127.0.0.1", self._port, *arguments)
        if self.public:
            self.strayed.append(host)
        return self._connect(host, port, *arguments)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack)


@pytest.fixture(scope="module")
def credentials() -> dict[str, str]:
    """Set valid keys for every kind of store."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "client_email": "x@y.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": key.decode(),
    }
    return {
        "TEAM_AWS_ACCESS_KEY_ID": "AKIATEST",
        "TEAM_AWS_SECRET_ACCESS_KEY": f"{MARK}key",
        "TEAM_GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account),
        "TEAM_AZURE_STORAGE_ACCOUNT_KEY": "YSBrZXkgb2YgdGhlIHRlc3QncyBvd24=",
    }


@dataclass
class Fuzzer:
    """Runs cases with the real `fetch_dataset`, but without its pauses."""

    network: Network
    credentials: dict[str, str]
    folder: Path
    pauses: list[float]

    def fetch(self, case: Case, world: World, given: list[Answer]) -> bytes | Reason | str:
        """Return the file's bytes, the reason of the StageError, or any other exception's text."""
        self.network.script = Script(given)
        self.network.public = case.public
        self.pauses.clear()
        source: DatasetSource = UrlSource(kind="Url", url_variable="URL")
        environment = {"URL": case.url or _url(case, world)}
        if case.store:
            endpoint = self.network.inside
            uri = stores.URIS[case.store]
            source = ObjectStoreSource(
                kind="ObjectStore", uri=uri, endpoint=endpoint, credentials_prefix="TEAM_"
            )
            environment = self.credentials
        limits = RunLimits(
            dataset_bytes=case.limit,
            download_seconds=case.seconds,
            allow_private_addresses=not case.public,
            retry_seconds=2 * PAUSE_SECONDS,
        )
        try:
            fetched = fetch_dataset(source, "dataset", limits, self.folder, _ignore, environment)
        except StageError as error:
            if MARK in "".join(traceback.format_exception(error)):
                return f"a secret in: {error.message}"
            return error.reason
        except Exception as error:  # noqa: BLE001 -- this test looks for any other exception
            return repr(error)
        if MARK in json.dumps(fetched.identity) or any(
            MARK.encode() in path.read_bytes() for path in self.folder.glob(".*")
        ):
            return "a secret in the identity or a note"
        return fetched.paths[0].read_bytes()

    def differences(self, case: Case, world: World) -> list[str]:
        """Run a case in an empty folder and return the differences from the expected end."""
        shutil.rmtree(self.folder, ignore_errors=True)
        wrong: list[str] = []
        if case.left_by:
            self.fetch(case, world, case.left_by)
        found, expected = self.fetch(case, world, case.answers), case.expected
        if found != expected.outcome:
            wrong.append(f"outcome must be {expected.outcome!r}, found {found!r}")
        script = self.network.script
        if expected.requests not in {None, len(script.seen)}:
            wrong.append(f"requests must be {expected.requests}, found {script.lines}")
        last = script.lines[-1].split(" ")[1].rstrip("?") if script.lines else None
        if expected.last_target is not None and last != expected.last_target.rstrip("?"):
            wrong.append(f"the last target must be {expected.last_target}, found {last}")
        if not all(expected.pause <= pause <= 60 for pause in self.pauses):
            wrong.append(f"pauses must be {expected.pause} to 60 seconds, found {self.pauses}")
        if self.network.strayed:
            wrong.append(f"connected to {self.network.strayed}")
            self.network.strayed.clear()
        return wrong


def _url(case: Case, world: World) -> str:
    origin = world.outside if case.public else world.inside
    if world.random.random() < 0.2:
        origin = origin.replace("://", f"://user:{MARK}@")
    return origin + (case.target or world.target())


def _ignore(_done: int, _total: int | None) -> None:
    """Other tests cover progress."""


@pytest.fixture
def fuzzer(
    network: Network, credentials: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Fuzzer:
    pauses: list[float] = []
    patient = partial(download, ssl_context=network.context, sleep=pauses.append)
    monkeypatch.setattr(dataset, "download", patient)
    # So an outage that does not pass has three attempts. The tests of the loop cover the real pauses.
    monkeypatch.setattr(
        RetryPolicy, "pause", lambda _policy, _failures, asked: max(PAUSE_SECONDS, min(asked, 60))
    )
    monkeypatch.setattr(
        object_store, "download_object", partial(object_store.download_object, sleep=pauses.append)
    )
    monkeypatch.setattr(socket, "getaddrinfo", network.resolve)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", network.connect)
    return Fuzzer(network, credentials, tmp_path / "sources", pauses)


def test_a_tenth_of_the_two_thousand_responses_are_from_object_stores() -> None:
    assert sum(SHARES.values()) == ANSWERS
    assert sum(count for make, count in SHARES.items() if make.__module__ == stores.__name__) == ANSWERS // 10


@pytest.mark.slow
@pytest.mark.parametrize("make", SHARES, ids=lambda make: make.__name__)
def test_every_response_has_its_expected_end_and_repeats_no_secret(
    fuzzer: Fuzzer, make: Callable[[World], Case], caplog: pytest.LogCaptureFixture
) -> None:
    """The end is the file's bytes or exactly one reason, after the expected number of requests."""
    caplog.set_level(logging.DEBUG, logger="finetune_trainer")
    wrong: dict[int, list[str]] = {}
    for number in range(SHARES[make]):
        world = World(
            Random(f"{make.__name__} {number}"),  # noqa: S311 -- names a case, no secret
            fuzzer.network.inside,
            "https://files.example",
            fuzzer.network.closed,
        )
        if differences := fuzzer.differences(make(world), world):
            wrong[number] = differences
    assert wrong == {}
    assert MARK not in caplog.text
