"""The little HTTP that scrapers need: one GET or HEAD per connection. It reads bytes and returns bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus

LARGEST_REQUEST = 8192
"""Bytes of a request's head; more is not read."""

_END = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.[01]\r?")

Page = tuple[str, Callable[[], bytes]]
"""A content type, and the function that makes the body."""


def respond(received: bytes, pages: Mapping[str, Page]) -> bytes | None:
    """Return the response to the bytes that a client sent, or None if it must send more.

    `pages` are found by their paths. A function of a page may raise; then the client gets status 500.
    """
    line, newline, _ = received.partition(b"\n")
    matched = _LINE.fullmatch(line)
    if newline and matched is None:
        return _error(
            HTTPStatus.BAD_REQUEST, "a request must begin with a line such as GET /metrics HTTP/1.1"
        )
    if matched is not None and _END.search(received) is not None:
        return _page(matched[1].decode(), matched[2].decode().partition("?")[0], pages)
    if len(received) < LARGEST_REQUEST:
        return None
    return _error(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {LARGEST_REQUEST} bytes of headers are read"
    )


def _page(method: str, path: str, pages: Mapping[str, Page]) -> bytes:
    if method not in {"GET", "HEAD"}:
        return _error(HTTPStatus.METHOD_NOT_ALLOWED, "the method must be GET or HEAD", {"Allow": "GET, HEAD"})
    if path not in pages:
        return _error(HTTPStatus.NOT_FOUND, f"paths are {' and '.join(pages)}")
    kind, make = pages[path]
    try:
        body = make()
    except Exception as error:  # noqa: BLE001 -- a document that cannot be made must not end the server
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"the page cannot be made: {type(error).__name__}")
    head = _head(HTTPStatus.OK, kind, len(body), {})
    return head + body if method == "GET" else head


def _error(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> bytes:
    body = f"{text}\n".encode()
    return _head(status, "text/plain; charset=utf-8", len(body), headers or {}) + body


def _head(status: HTTPStatus, kind: str, length: int, headers: Mapping[str, str]) -> bytes:
    fields = {"Content-Type": kind, "Content-Length": length, "Connection": "close", **headers}
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()
