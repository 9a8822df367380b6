"""Cases of a fuzzed dataset source, and responses that are written to the connection as raw bytes."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from random import Random

from finetune_trainer.errors import Reason

from tests.support.servers.loopback import Answer
from tests.support.servers.response_documents import MARK, object_name

_NOISE = (
    ("Content-Type", b"application/octet-stream"),
    ("Content-Type", b"text/html; charset=utf-8"),
    ("Content-Type", b"application/xml"),
    ("ETag", b'"0123456789abcdef"'),
    ("ETag", b'W/"weak"'),
    ("ETag", b"no quotes"),
    ("Last-Modified", b"Thu, 01 Jan 2026 00:00:00 GMT"),
    ("Accept-Ranges", b"none"),
    ("Set-Cookie", f"session={MARK}; Secure".encode()),
    ("X-Name", "Zoë 日本".encode()),
    ("X-Latin", "Zoë".encode("latin-1")),
    ("Content-Disposition", b"attachment; filename*=UTF-8''d%C3%A4ta.jsonl"),
    ("X-Empty", b""),
    ("Content-Encoding", b"identity"),
    ("Retry-After", b"1"),
)


@dataclass(frozen=True)
class Expected:
    """The expected end of a download: these bytes or this reason.

    If the case determines them, also: the number of requests, the target of the last one, and the shortest pause
    between tries in seconds.
    """

    outcome: bytes | Reason
    requests: int | None = None
    last_target: str | None = None
    pause: float = 0.0


@dataclass(frozen=True)
class Case:
    """A server's responses in order, with the last one repeated, and the expected end of the download.

    The default of `url` is the server with a path and query for this case. `left_by` holds the responses that an
    earlier process received before it failed. With `public`, the server is on the public Internet and uses TLS, and
    private addresses are forbidden.
    """

    answers: list[Answer]
    expected: Expected
    url: str = ""
    target: str = ""
    limit: int = 1_000_000
    seconds: int = 60
    public: bool = False
    store: str = ""
    left_by: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class World:
    """The addresses of the servers, and the source of all random choices."""

    random: Random
    inside: str
    outside: str
    closed: str

    def target(self) -> str:
        """Return a secret path and query."""
        value = f"{MARK}{self.random.getrandbits(64):016x}"
        queries = [
            f"X-Amz-Expires=60&X-Amz-Signature={value}",
            f"sig={value}%2B&se=2026-01-01",
            f"{value}",
            "",
        ]
        return f"/{object_name(self.random)}?{self.random.choice(queries)}"


def rows(random: Random, least: int = 1) -> bytes:
    """Return a small JSONL file."""
    words = ["hello", "Zoë", "日本", "<b>", "expired", "a b", "\\"]
    lines = [
        json.dumps({"messages": [{"role": "user", "content": " ".join(random.choices(words, k=5))}]})
        for _ in range(random.randint(least, 12))
    ]
    return "\n".join(lines).encode() + b"\n" * random.randrange(2)


def head(status: int, fields: list[tuple[str, bytes]]) -> bytes:
    """Return a status line and header fields."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unassigned"
    lines = [f"HTTP/1.1 {status} {phrase}".encode()]
    return b"\r\n".join([*lines, *(name.encode() + b": " + value for name, value in fields), b"", b""])


def chunked(random: Random, body: bytes) -> bytes:
    """Return a body in chunks of random sizes."""
    parts = []
    while body:
        size = random.choice([1, 2, 7, 64, 4096])
        extension = random.choice([b"", b"", b";name=value"])
        parts.append(b"%x%s\r\n%s\r\n" % (len(body[:size]), extension, body[:size]))
        body = body[size:]
    return b"".join([*parts, b"0\r\n", random.choice([b"", b"X-Trailer: 1\r\n"]), b"\r\n"])


def message(
    random: Random, status: int, body: bytes = b"", *fields: tuple[str, bytes], framing: str = ""
) -> bytes:
    """Return a complete response, with its fields in any order and case.

    The body is framed by its length, by chunks or by the end of the connection.
    """
    framing = framing or random.choice(["length", "chunked", "end"])
    given = {name.lower() for name, _ in fields}
    noise = [field for field in random.sample(_NOISE, k=random.randrange(4)) if field[0].lower() not in given]
    noise = list({name: (name, value) for name, value in noise}.values())
    if status >= 300:
        noise = [field for field in noise if field[0] != "Retry-After"]
    everything = [*fields, *noise, ("Connection", b"close")]
    if framing == "length":
        everything.append(("Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        everything.append(("Transfer-Encoding", b"chunked"))
        body = chunked(random, body)
    random.shuffle(everything)
    changed = [(random.choice([name, name.lower(), name.upper()]), value) for name, value in everything]
    return head(status, changed) + body


def send(data: bytes, *, reset: bool = False) -> Answer:
    """Write these bytes, then end the connection with FIN, or with RST if `reset` is True."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)
        if reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(handler.connection.detach())

    return answer


def endless(data: bytes, more: bytes) -> Answer:
    """Write `data`, then `more` until the client disconnects or should long have stopped reading."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)
        for _ in range(10_000):
            handler.wfile.write(more * 4096)

    return answer


def drip(data: bytes, seconds: float) -> Answer:
    """Write single bytes with a pause of `seconds` between them."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        for byte in data:
            handler.wfile.write(bytes([byte]))
            time.sleep(seconds)

    return answer


def persistent(head_of_answer: bytes, body: bytes) -> Answer:
    """Respond and keep the connection for the next request."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head_of_answer + body)
        handler.close_connection = False

    return answer
