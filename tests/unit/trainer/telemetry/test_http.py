from __future__ import annotations

import pytest
from finetune_trainer.telemetry.http import LARGEST_REQUEST, Page, respond
from hypothesis import given
from hypothesis import strategies as st


def broken() -> bytes:
    raise ValueError


PAGES: dict[str, Page] = {"/a": ("text/x", lambda: b"body"), "/broken": ("text/x", broken)}


def status(received: bytes) -> int | None:
    response = respond(received, PAGES)
    return None if response is None else int(response.split()[1])


def test_a_response_has_its_length_and_closes_the_connection() -> None:
    head, _, body = (respond(b"GET /a?x HTTP/1.1\r\nHost: x\r\n\r\n", PAGES) or b"").partition(b"\r\n\r\n")
    assert body == b"body"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/x",
        b"Content-Length: 4",
        b"Connection: close",
    ]


def test_a_request_for_the_head_gets_no_body() -> None:
    response = respond(b"HEAD /a HTTP/1.0\n\n", PAGES) or b""
    assert b"Content-Length: 4" in response
    assert response.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("received", "wanted"),
    [
        (b"", None),
        (b"GET /a HT", None),
        (b"GET /a HTTP/1.1\r\nX: y", None),
        (b"GET /a HTTP/1.1\r\n\r\nmore", 200),
        (b"GET /b HTTP/1.1\r\n\r\n", 404),
        (b"POST /a HTTP/1.1\r\n\r\n", 405),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
        (b"get /a HTTP/1.1\r\n", 400),
        (b"GET /a HTTP/2\r\n", 400),
        (b"\r\n", 400),
        (b"\x00" * LARGEST_REQUEST, 431),
        (b"GET /a HTTP/1.1\r\n" + b"X: y\r\n" * LARGEST_REQUEST, 431),
    ],
)
def test_every_beginning_of_a_request_has_its_status(received: bytes, wanted: int | None) -> None:
    assert status(received) == wanted


@given(st.binary(max_size=200), st.sampled_from([b"", b"GET /a HTTP/1.1\r\n", b"GET "]))
def test_no_bytes_raise_an_error(received: bytes, before: bytes) -> None:
    assert status(before + received + b"\r\n\r\n") is not None
