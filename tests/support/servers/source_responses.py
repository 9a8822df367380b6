"""Intended responses to a dataset's URL: files, errors, outages and login pages."""

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
    ErrorResponse,
    azure_error,
    gcs_json_error,
    gcs_xml_error,
    s3_error,
)
from tests.support.servers.wire import Case, Expected, World, endless, head, message, rows, send

TRIES = 3


def good(world: World, body: bytes) -> Answer:
    """Return a plain response with this file."""
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
    """Lines end with line feeds alone, and a field continues in the next line."""
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
    """Rows about errors and files that start with an angle bracket are accepted as files."""
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
    """The Content-Length is shorter than the sent data, and ends the file."""
    body = rows(world.random)
    length = world.random.randrange(len(body))
    return Case(
        [send(head(200, [("Content-Length", b"%d" % length), ("Connection", b"close")]) + body)],
        Expected(body[:length], requests=1),
    )


def error_case(response: ErrorResponse, data: bytes) -> Case:
    """Return a case that ends with the error's reason, after three tries if the error can be temporary."""
    requests = TRIES if response.passing else 1
    return Case([send(data)], Expected(response.reason, requests=requests))


def _document(world: World, make: Callable[..., ErrorResponse]) -> Case:
    response = make(world.random)
    return error_case(response, message(world.random, response.status, response.body))


def s3_refusal(world: World) -> Case:
    return _document(world, s3_error)


def gcs_xml_refusal(world: World) -> Case:
    return _document(world, gcs_xml_error)


def gcs_json_refusal(world: World) -> Case:
    return _document(world, gcs_json_error)


def azure_refusal(world: World) -> Case:
    return _document(world, azure_error)


def any_error_response(world: World) -> ErrorResponse:
    return world.random.choice([s3_error, gcs_xml_error, gcs_json_error, azure_error])(world.random)


def refusal_in_gzip(world: World) -> Case:
    response = any_error_response(world)
    packed = gzip.compress(response.body, mtime=0)
    return error_case(response, message(world.random, response.status, packed, ("Content-Encoding", b"gzip")))


def refusal_cut_off(world: World) -> Case:
    """The connection ends after the document, before the announced length."""
    response = any_error_response(world)
    length = len(response.body) + world.random.randrange(1, 1000)
    return error_case(response, head(response.status, [("Content-Length", b"%d" % length)]) + response.body)


def refusal_without_end(world: World) -> Case:
    """Blanks follow the document until the client stops reading."""
    response = any_error_response(world)
    answer = endless(message(world.random, response.status, response.body, framing="end"), b" ")
    return Case([answer], Expected(response.reason, requests=TRIES if response.passing else 1))


def refusal_as_success(world: World) -> Case:
    """Gateways send a store's XML document with status 200. The content of the document decides."""
    response = world.random.choice([s3_error, gcs_xml_error, azure_error])(world.random)
    expected = Expected(response.reason, requests=None if response.passing else 1)
    return Case([good(world, response.body)], expected)


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
    """A status without a cloud's error document."""
    reason = world.random.choice(list(_BARE))
    status = world.random.choice(_BARE[reason])
    body = b"" if _bodiless(status) else world.random.choice(PAGES)
    framing = "length" if _bodiless(status) else ""
    expected = Expected(reason, requests=None if reason is OUTAGE else 1)
    return Case([send(message(world.random, status, body, framing=framing))], expected)


def outage(world: World) -> Case:
    """A temporary status: three tries, with the server's Retry-After respected within bounds."""
    asked = world.random.choice(
        [None, b"0", b"7", b"25", b"86400", b"-5", b"1e9", b"9" * 40, b"soon", b"\xb2", b""]
    )
    fields = [] if asked is None else [("Retry-After", asked)]
    data = message(world.random, world.random.choice(_PASSING), world.random.choice(PAGES), *fields)
    pause = float(asked) if asked in {b"0", b"7", b"25"} else 0.0
    long = asked in {b"86400", b"9" * 40}
    # After a pause as long as the whole time, there is one more try.
    return Case([send(data)], Expected(OUTAGE, requests=2 if long else TRIES, pause=pause))


def outage_that_passes(world: World) -> Case:
    body = rows(world.random)
    faults = [
        send(message(world.random, world.random.choice(_PASSING), world.random.choice(PAGES)))
        for _ in range(world.random.randint(1, TRIES - 1))
    ]
    return Case([*faults, good(world, body)], Expected(body, requests=len(faults) + 1))


def outage_that_turns_into_a_refusal(world: World) -> Case:
    response = any_error_response(world)
    answers = [
        send(message(world.random, world.random.choice(_PASSING))),
        send(message(world.random, response.status, response.body)),
    ]
    return Case(answers, Expected(response.reason, requests=TRIES if response.passing else 2))


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
    """An HTML page that asks for a password instead of the file."""
    page, fields = login_page(world), []
    if world.random.random() < 0.3:
        page, fields = gzip.compress(page, mtime=0), [("Content-Encoding", b"gzip")]
    return Case([send(message(world.random, 200, page, *fields))], Expected(DENIED, requests=1))
