from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator

import pytest
from finetune_trainer.telemetry.connections import LARGEST_NUMBER, LONGEST_SECONDS, Connections

REQUEST = b"GET /a HTTP/1.1\r\n\r\n"


@pytest.fixture
def connections() -> Iterator[Connections]:
    with selectors.PollSelector() as selector:
        found = Connections(selector, {"/a": ("text/x", lambda: b"body")})
        yield found
        found.close()


def client(connections: Connections, now: float = 0.0, sent: bytes = b"") -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    theirs.sendall(sent)
    connections.add(ours, now)
    return theirs


def test_a_request_that_is_there_already_is_answered_at_once(connections: Connections) -> None:
    with client(connections, sent=REQUEST) as scraper:
        assert scraper.recv(100).startswith(b"HTTP/1.1 200")
    assert len(connections) == 0


def test_a_further_connection_takes_the_place_of_the_oldest(connections: Connections) -> None:
    clients = [client(connections) for _ in range(LARGEST_NUMBER + 1)]
    assert len(connections) == LARGEST_NUMBER
    assert clients[0].recv(1) == b""
    for one in clients:
        one.close()


def test_a_connection_ends_after_its_time_even_if_it_sends_a_byte_now_and_then(
    connections: Connections,
) -> None:
    with client(connections, now=100, sent=b"G") as slow:
        connections.expire(100 + LONGEST_SECONDS - 0.1)
        slow.sendall(b"E")
        assert len(connections) == 1
        connections.expire(100 + LONGEST_SECONDS)
        assert len(connections) == 0


def test_a_client_that_is_gone_is_dropped(connections: Connections) -> None:
    client(connections, sent=b"GET").close()
    (key,) = connections._selector.get_map().values()
    connections.serve(key.data)
    assert len(connections) == 0
