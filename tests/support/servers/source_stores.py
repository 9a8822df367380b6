"""Responses of object stores to the obstore client, at an endpoint from the spec."""

from __future__ import annotations

from tests.support.servers.loopback import Answer, ranged
from tests.support.servers.response_documents import (
    DENIED,
    EXPIRED,
    OUTAGE,
    azure_error,
    gcs_xml_error,
    s3_error,
)
from tests.support.servers.source_faults import TOO_LARGE, V1, V2
from tests.support.servers.source_responses import TRIES
from tests.support.servers.wire import Case, Expected, World, head, message, rows, send

DATE = b"Thu, 01 Jan 2026 00:00:00 GMT"
URIS = {
    "s3": "s3://bucket/rows.jsonl",
    "gs": "gs://bucket/rows.jsonl",
    "az": "az://account/container/rows.jsonl",
}
_DOCUMENTS = {"s3": s3_error, "gs": gcs_xml_error, "az": azure_error}


def _whole(body: bytes, etag: str = V1) -> Answer:
    return ranged(etag, body, headers={"Last-Modified": DATE.decode()})


def _cut(body: bytes, cut: int) -> Answer:
    return ranged(V1, body, cut_at=cut, headers={"Last-Modified": DATE.decode()})


def store_refusal(world: World) -> Case:
    """Expired credentials mean that access is denied, unlike an expired URL."""
    store = world.random.choice(list(_DOCUMENTS))
    response = _DOCUMENTS[store](world.random)
    reason = DENIED if response.reason is EXPIRED else response.reason
    data = message(
        world.random, response.status, response.body, framing=world.random.choice(["length", "chunked"])
    )
    return Case([send(data)], Expected(reason, requests=TRIES if response.passing else 1), store=store)


def store_outage_that_passes(world: World) -> Case:
    body = rows(world.random)
    faults = [
        send(message(world.random, world.random.choice([500, 502, 503, 429]))),
        send(b"", reset=world.random.random() < 0.5),
        send(b"SSH-2.0-OpenSSH_9.6\r\n"),
    ]
    answers = [*world.random.sample(faults, k=world.random.randint(1, TRIES - 1)), _whole(body)]
    return Case(answers, Expected(body), store=world.random.choice(list(URIS)))


def store_object(world: World) -> Case:
    """The object arrives whole, or is cut and resumed by range."""
    body = rows(world.random, least=4)
    cut = world.random.randrange(1, len(body))
    answers = world.random.choice([[_whole(body)], [_cut(body, cut), _whole(body)]])
    return Case(answers, Expected(body), store=world.random.choice(list(URIS)))


def store_object_that_changed(world: World) -> Case:
    """The precondition fails, and the object is fetched from the beginning."""
    old, new = rows(world.random, least=4), rows(world.random)
    cut = _cut(old, world.random.randrange(1, len(old)))
    answers = [cut, send(message(world.random, 412, framing="length")), _whole(new, V2)]
    return Case(answers, Expected(new, requests=3), store=world.random.choice(list(URIS)))


def store_oversized(world: World) -> Case:
    fields = [("ETag", V1.encode()), ("Last-Modified", DATE), ("Content-Length", b"50000")]
    data = head(200, fields) + rows(world.random)
    return Case(
        [send(data)],
        Expected(TOO_LARGE, requests=1),
        limit=20_000,
        store=world.random.choice(list(URIS)),
    )


def store_garbage(world: World) -> Case:
    """The response does not follow the stores' protocol."""
    data = world.random.choice(
        [
            b"",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 99999 OK\r\n\r\n",
            head(200, [("Content-Length", b"abc")]),
            head(204, []),
            head(301, [("Content-Length", b"0")]),
        ]
    )
    return Case([send(data)], Expected(OUTAGE), store=world.random.choice(list(URIS)))
