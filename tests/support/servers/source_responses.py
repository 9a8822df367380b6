"""Answers to a dataset's URL that a server means as such: files, refusals, outages, pages to sign in."""

from __future__ import annotations

import gzip
from collections.abc import Callable

from tests.support.servers.loopback import Answer
from tests.support.servers.response_documents import (
    DENIED,
    EXPIRED,
    MARK,
    MISSING,
    OUTAGE,
    Refusal,
    azure_error,
    gcs_json_error,
    gcs_xml_error,
    s3_error,
)
from tests.support.servers.wire import Case, Expected, World, endless, head, message, rows, send

TRIES = 3


def good(world: World, body: bytes) -> Answer:
    """A plain answer with this file."""
    return send(message(world.random, 200, body))


def plain_file(world: World) -> Case:
    body = rows(world.random)
    return Case([good(world, body)], Expected(body, requests=1))


def empty_file(world: World) -> Case:
    return Case([good(world, b"")], Expected(b"", requests=1))


def file_after_interim_answers(world: World) -> Case:
    body = rows(world.random)
    interim = b"".join(head(world.random.choice([100, 102, 103]), [("Link", b"</x>")]) for _ in range(2))
    return Case([send(interim + message(world.random, 200, body))], Expected(body, requests=1))


def file_with_loose_line_ends(world: World) -> Case:
    """Line feeds alone, and a field that goes on in the next line."""
    body = rows(world.random)
    if world.random.random() < 0.5:
        lines = head(200, [("Content-Length", b"%d" % len(body)), ("X", b"y")]).replace(b"\r\n", b"\n")
    else:
        lines = head(200, [("X-Folded", b"one\r\n two"), ("Content-Length", b"%d" % len(body))])
    return Case([send(lines + body)], Expected(body, requests=1))


def file_with_large_headers(world: World) -> Case:
    body = rows(world.random)
    total, count = world.random.randrange(1_000, 60_000), world.random.choice([1, 20])
    fields = [(f"X-{n}", bytes([world.random.choice(b"ax~\xe9")]) * (total // count)) for n in range(count)]
    return Case([send(message(world.random, 200, body, *fields))], Expected(body, requests=1))


def file_that_looks_like_markup(world: World) -> Case:
    """Rows about errors, and files that begin with an angle bracket, are files."""
    body = world.random.choice(
        [
            b'{"messages": [{"content": "<Error><Code>AccessDenied</Code></Error>"}]}\n',
            b'{"text": "<html><title>Sign in</title><input type=password>"}\n',
            b"<id>,text\n1,Please sign in with your password\n",
            b"<ErrorRate>,<Code>\n0.1,AccessDenied\n",
            b"<rows><row>Request has expired</row></rows>",
            b"<html><head><title>Rows</title></head><body><p>one</p></body></html>",
            b"\xef\xbb\xbf" + rows(world.random),
            b" \r\n\t" + rows(world.random),
            b"  ",
            b"<",
        ]
    )
    return Case([good(world, body)], Expected(body, requests=1))


def file_shorter_than_sent(world: World) -> Case:
    """A Content-Length that says less than is sent ends the file there: a message is as long as it says."""
    body = rows(world.random)
    length = world.random.randrange(len(body))
    return Case(
        [send(head(200, [("Content-Length", b"%d" % length), ("Connection", b"close")]) + body)],
        Expected(body[:length], requests=1),
    )


def refused(refusal: Refusal, data: bytes) -> Case:
    """A case that ends for the refusal's reason, after three tries where it may pass."""
    requests = TRIES if refusal.passing else 1
    return Case([send(data)], Expected(refusal.reason, requests=requests))


def _document(world: World, make: Callable[..., Refusal]) -> Case:
    refusal = make(world.random)
    return refused(refusal, message(world.random, refusal.status, refusal.body))


def s3_refusal(world: World) -> Case:
    return _document(world, s3_error)


def gcs_xml_refusal(world: World) -> Case:
    return _document(world, gcs_xml_error)


def gcs_json_refusal(world: World) -> Case:
    return _document(world, gcs_json_error)


def azure_refusal(world: World) -> Case:
    return _document(world, azure_error)


def any_refusal(world: World) -> Refusal:
    return world.random.choice([s3_error, gcs_xml_error, gcs_json_error, azure_error])(world.random)


def refusal_in_gzip(world: World) -> Case:
    refusal = any_refusal(world)
    packed = gzip.compress(refusal.body, mtime=0)
    return refused(refusal, message(world.random, refusal.status, packed, ("Content-Encoding", b"gzip")))


def refusal_cut_off(world: World) -> Case:
    """The connection ends after the document, before the length that was announced."""
    refusal = any_refusal(world)
    length = len(refusal.body) + world.random.randrange(1, 1000)
    return refused(refusal, head(refusal.status, [("Content-Length", b"%d" % length)]) + refusal.body)


def refusal_without_end(world: World) -> Case:
    """A document with blanks behind it for as long as anybody reads."""
    refusal = any_refusal(world)
    answer = endless(message(world.random, refusal.status, refusal.body, framing="end"), b" ")
    return Case([answer], Expected(refusal.reason, requests=TRIES if refusal.passing else 1))


def refusal_as_success(world: World) -> Case:
    """Gateways send a store's XML document with status 200; what it says counts."""
    refusal = world.random.choice([s3_error, gcs_xml_error, azure_error])(world.random)
    expected = Expected(refusal.reason, requests=None if refusal.passing else 1)
    return Case([good(world, refusal.body)], expected)


_BARE = {
    DENIED: (401, 403, 407, 451),
    MISSING: (404,),
    EXPIRED: (410,),
    OUTAGE: (
        400,
        405,
        406,
        411,
        413,
        414,
        415,
        417,
        418,
        421,
        426,
        428,
        431,
        202,
        204,
        205,
        304,
        300,
        600,
        999,
    ),
}
_PASSING = (408, 425, 429, 500, 502, 503, 504, 507, 508, 520, 522, 524, 599)
PAGES = (
    b"",
    b"<html><head><title>Error</title></head><body>nginx</body></html>",
    b"Something went wrong",
    b'{"detail": "no"}',
    bytes(range(256)),
    b"\x1f\x8b broken gzip",
)


def _bodiless(status: int) -> bool:
    return status in {204, 205, 304}


def bare_status(world: World) -> Case:
    """A status that no cloud's document explains."""
    reason = world.random.choice(list(_BARE))
    status = world.random.choice(_BARE[reason])
    body = b"" if _bodiless(status) else world.random.choice(PAGES)
    framing = "length" if _bodiless(status) else ""
    expected = Expected(reason, requests=None if reason is OUTAGE else 1)
    return Case([send(message(world.random, status, body, framing=framing))], expected)


def outage(world: World) -> Case:
    """A status that may pass: three tries, and the server's wish to be left alone is heard within bounds."""
    asked = world.random.choice(
        [None, b"0", b"7", b"25", b"86400", b"-5", b"1e9", b"9" * 40, b"soon", b"\xb2", b""]
    )
    fields = [] if asked is None else [("Retry-After", asked)]
    data = message(world.random, world.random.choice(_PASSING), world.random.choice(PAGES), *fields)
    pause = float(asked) if asked in {b"0", b"7", b"25"} else 0.0
    return Case([send(data)], Expected(OUTAGE, requests=TRIES, pause=pause))


def outage_that_passes(world: World) -> Case:
    body = rows(world.random)
    faults = [
        send(message(world.random, world.random.choice(_PASSING), world.random.choice(PAGES)))
        for _ in range(world.random.randint(1, TRIES - 1))
    ]
    return Case([*faults, good(world, body)], Expected(body, requests=len(faults) + 1))


def outage_that_turns_into_a_refusal(world: World) -> Case:
    refusal = any_refusal(world)
    answers = [
        send(message(world.random, world.random.choice(_PASSING))),
        send(message(world.random, refusal.status, refusal.body)),
    ]
    return Case(answers, Expected(refusal.reason, requests=TRIES if refusal.passing else 2))


def login_page(world: World) -> bytes:
    random = world.random
    title = random.choice(["Sign in", "Log in", "Login", "Sign in - Corp", "Please log in"])
    start = random.choice(
        [
            "<!DOCTYPE html>\n<html>",
            '<html lang="en">',
            "<HTML>",
            "\ufeff<!doctype HTML><html>",
            "\n\n <html>",
        ]
    )
    form = f'<form action="/login?next={MARK}"><input name="u"><input type="password" name="p"></form>'
    return f"{start}<head><title>{title}</title></head><body>{form}</body></html>".encode()


def sign_in_page(world: World) -> Case:
    """An HTML page that asks for a password, in the place of the file."""
    page, fields = login_page(world), []
    if world.random.random() < 0.3:
        page, fields = gzip.compress(page, mtime=0), [("Content-Encoding", b"gzip")]
    return Case([send(message(world.random, 200, page, *fields))], Expected(DENIED, requests=1))
