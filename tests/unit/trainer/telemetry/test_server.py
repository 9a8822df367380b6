from __future__ import annotations

import json
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from finetune_trainer.telemetry.server import PORTS_TRIED, TelemetryServer, start_server

DOCUMENT: dict[str, Any] = {
    "stage": "Train",
    "activity": "Training",
    "step": 3,
    "totalSteps": None,
    "loss": 1.5,
    "learningRate": None,
    "tokensPerSecond": None,
    "peakMemoryBytes": 7,
    "heartbeatTime": "2026-01-31T10:00:00.000Z",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving() -> Iterator[TelemetryServer]:
    server = start_server("127.0.0.1", free_port(), lambda: dict(DOCUMENT))
    assert server is not None
    try:
        yield server
    finally:
        server.close()


def get(server: TelemetryServer, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=5) as response:
        body: bytes = response.read()
    return body.decode()


def test_the_document_is_served_as_json_with_or_without_a_query() -> None:
    with serving() as server:
        assert json.loads(get(server, "/progress?now=1")) == DOCUMENT


def test_only_known_numbers_become_metrics() -> None:
    with serving() as server:
        lines = [line for line in get(server, "/metrics").splitlines() if not line.startswith("#")]
    names = {line.partition("{")[0].removeprefix("finetune_trainer_") for line in lines}
    assert names == {"step", "loss", "peak_memory_bytes", "heartbeat_timestamp_seconds"}
    assert 'finetune_trainer_loss{activity="Training",stage="Train"} 1.5' in lines


def test_another_path_is_not_found_and_names_the_paths() -> None:
    with serving() as server, pytest.raises(urllib.error.HTTPError) as caught:
        get(server, "/secrets")
    with caught.value as answer:
        assert answer.code == 404
        assert b"/progress and /metrics" in answer.read()


def test_after_close_the_port_is_free_again() -> None:
    with serving() as server:
        port = server.server_port
    with TelemetryServer("127.0.0.1", port, lambda: dict(DOCUMENT)) as again:
        assert again.server_port == port


def test_without_a_usable_port_nothing_is_served(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert start_server("203.0.113.1", 18080, lambda: dict(DOCUMENT)) is None
    assert len(caplog.records) == PORTS_TRIED + 1
