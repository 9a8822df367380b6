from __future__ import annotations

import ctypes
import json
import logging
import resource
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.telemetry import background
from finetune_trainer.telemetry.connections import LARGEST_NUMBER
from finetune_trainer.telemetry.server import LARGEST_SHARE, PORTS_TRIED, TelemetryServer

DOCUMENT: dict[str, Any] = {
    "stage": "Train",
    "activity": "Training",
    "step": 3,
    "heartbeatTime": "2026-01-31T10:00:00.000Z",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(document: Callable[[], dict[str, Any]] = lambda: dict(DOCUMENT)) -> Iterator[TelemetryServer]:
    server = TelemetryServer("127.0.0.1", free_port(), document)
    assert server.port is not None
    try:
        yield server
    finally:
        server.close()


def get(server: TelemetryServer, path: str = "/progress", timeout: float = 10) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=timeout) as response:
        body: bytes = response.read()
    return body


def connect(server: TelemetryServer) -> socket.socket:
    assert server.port is not None
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def _alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "telemetry-http"]


_OTHERS: list[threading.Thread] = []
"""Servers of runs that tests of this process have ended in their middle."""


@pytest.fixture(autouse=True)
def _only_own_threads() -> None:
    _OTHERS[:] = _alive()


def threads() -> list[threading.Thread]:
    return [thread for thread in _alive() if thread not in _OTHERS]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_document_is_served_as_json_and_as_metrics() -> None:
    with serving() as server:
        assert json.loads(get(server, "/progress?now=1")) == DOCUMENT
        assert b'finetune_trainer_step{activity="Training",stage="Train"} 3.0' in get(server, "/metrics")


def test_another_path_is_not_found_and_names_the_paths() -> None:
    with serving() as server, pytest.raises(urllib.error.HTTPError) as caught:
        get(server, "/secrets")
    with caught.value as answer:
        assert answer.code == 404
        assert b"/progress and /metrics" in answer.read()


def test_after_close_the_port_is_free_and_no_thread_is_left() -> None:
    with serving() as server:
        port = server.port
    assert (server.port, threads()) == (None, [])
    with socket.create_server(("127.0.0.1", port or 0)):
        pass


def test_a_document_with_nan_is_an_error_and_not_invalid_json() -> None:
    with (
        serving(lambda: {**DOCUMENT, "loss": float("nan")}) as server,
        pytest.raises(urllib.error.HTTPError) as caught,
    ):
        get(server)
    with caught.value as answer:
        assert answer.code == 500


def test_a_hundred_concurrent_scrapes_are_all_served_by_one_thread() -> None:
    with serving() as server, ThreadPoolExecutor(100) as clients:
        found = list(clients.map(lambda _: json.loads(get(server, timeout=30)), range(100)))
        assert len(threads()) == 1
    assert found == [DOCUMENT] * 100


def test_idle_clients_by_the_hundreds_do_not_keep_a_scraper_out() -> None:
    with serving() as server, ExitStack() as idle:
        for number in range(3 * LARGEST_NUMBER):
            client = idle.enter_context(connect(server))
            if number % 2:
                client.sendall(b"GET /progress HTTP/1.1\r\nX: ")
        assert json.loads(get(server)) == DOCUMENT
        assert len(threads()) == 1


def test_a_client_that_never_reads_keeps_nobody_waiting() -> None:
    """Its receive buffer is smaller than the response."""
    large = {**DOCUMENT, "config": {"text": "x" * 3_000_000}}
    with serving(lambda: large) as server, socket.socket() as hung:
        hung.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        hung.connect(("127.0.0.1", server.port))
        hung.sendall(b"GET /progress HTTP/1.1\r\n\r\n")
        assert b"finetune_trainer_step" in get(server, "/metrics")


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\xfc\n" + bytes(range(256)), id="garbage"),
        pytest.param(b"GET /" + b"a" * 100_000, id="endless line"),
        pytest.param(b"GET /progress HTTP/1.1\r\n" + b"X: y\r\n" * 100_000, id="huge headers"),
        pytest.param(b"GET /progress HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nx", id="body"),
        pytest.param(b"DELETE /progress HTTP/1.1\r\n\r\n", id="method"),
        pytest.param(b"\n", id="empty line"),
    ],
)
def test_a_hostile_request_is_cut_off_and_the_next_scrape_is_served(attack: bytes) -> None:
    with serving() as server:
        with connect(server) as client:
            try:
                client.sendall(attack)
                client.recv(1 << 16)
            except ConnectionError:
                pass
        assert json.loads(get(server)) == DOCUMENT


def test_under_a_flood_the_thread_stays_within_its_share_of_a_core() -> None:
    """The clock of the CPU counts what the thread took, however busy the machine is."""
    taken: list[float] = []

    def document() -> dict[str, Any]:
        taken.append(time.thread_time())
        return dict(DOCUMENT)

    with serving(document) as server:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(lambda _: get(server, "/metrics", timeout=30), range(200)))
        seconds = time.monotonic() - began
    # The last wait may lie behind the last scrape.
    assert taken[-1] - taken[0] <= 1.5 * LARGEST_SHARE * seconds + 0.02


def test_without_a_usable_port_nothing_is_served(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        server = TelemetryServer("203.0.113.1", 18080, lambda: dict(DOCUMENT))
    assert server.port is None
    assert len(caplog.records) == PORTS_TRIED + 1
    server.close()


def end_thread() -> None:
    """Raise SystemExit in the server's thread, as an error of the interpreter could."""
    (thread,) = threads()
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    wait_for(lambda: not thread.is_alive())


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # the test ends the thread
def test_a_thread_that_ended_is_started_again_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.0)
    with serving() as server, caplog.at_level(logging.WARNING):
        port = server.port
        for _ in range(2):
            end_thread()
            server.supervise()
            wait_for(lambda: server.port is not None)
            assert json.loads(get(server)) == DOCUMENT
        assert server.port == port
    assert [record.getMessage() for record in caplog.records] == [
        "telemetry: the thread of telemetry-http had ended and runs again"
    ]


def test_without_a_free_descriptor_scrapes_wait_and_are_served_later() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving() as server, connect(server) as early, socket.socket() as client:
        client.settimeout(20)
        early.sendall(b"GET")
        with Path("/dev/null").open("rb") as probe:
            lowest = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /progress HTTP/1.1\r\n\r\n")
            began = time.process_time()
            time.sleep(0.5)
            spent = time.process_time() - began
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert client.recv(12) == b"HTTP/1.1 200"
    assert spent < 0.1


def test_a_pod_is_scraped_at_its_addresses_of_both_families() -> None:
    server = TelemetryServer("0.0.0.0", free_port(), lambda: dict(DOCUMENT))  # noqa: S104 -- as in a pod
    try:
        for host in ("127.0.0.1", "[::1]"):
            with urllib.request.urlopen(f"http://{host}:{server.port}/progress", timeout=10) as response:
                assert json.load(response)["step"] == DOCUMENT["step"]
    finally:
        server.close()


def test_a_port_that_another_server_has_on_ipv4_is_not_taken() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = TelemetryServer("0.0.0.0", port, lambda: dict(DOCUMENT))  # noqa: S104 -- as in a pod
        try:
            assert server.port != port
        finally:
            server.close()
