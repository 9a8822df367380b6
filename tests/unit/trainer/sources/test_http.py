"""Downloads from real servers on loopback over real TLS, with realistic faults."""

from __future__ import annotations

import gzip
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpcore
import pytest
import trustme
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.http import Limits, download

from tests.support.servers.loopback import BODY, Answer, Script, http_server, ranged, status
from tests.support.servers.signed_url import SECRET, serving


def fetch(
    url: str,
    tmp_path: Path,
    *,
    allow: bool = True,
    size: int = 10**9,
    seconds: float = 60,
    retry_seconds: float = 600,
    context: ssl.SSLContext | None = None,
) -> bytes:
    target = tmp_path / "dataset"
    download(
        url,
        target,
        Limits(size, seconds, allow, retry_seconds),
        lambda _done, _total: None,
        ssl_context=context,
        sleep=lambda _s: None,
    )
    return target.read_bytes()


def rejection(script: Script, tmp_path: Path, **options: Any) -> StageError:
    with serving(script) as url, pytest.raises(StageError) as caught:
        fetch(url, tmp_path, **options)
    assert SECRET.partition("=")[2] not in caught.value.message
    assert "localhost" not in caught.value.message
    return caught.value


def tls() -> tuple[trustme.CA, ssl.SSLContext]:
    """Return a test certificate authority and the TLS context of a server with its certificate."""
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_side)
    return authority, server_side


def test_a_file_arrives_over_verified_tls(tmp_path: Path) -> None:
    authority, server_side = tls()
    client_side = ssl.create_default_context()
    script = Script([status(200, BODY)])
    with serving(script, server_side) as url:
        with pytest.raises(StageError) as caught:
            fetch(url, tmp_path, context=client_side)
        assert caught.value.reason is Reason.DATASET_UNAVAILABLE
        assert "certificate" in caught.value.message
        authority.configure_trust(client_side)
        assert fetch(url, tmp_path, context=client_side) == BODY
    assert script.seen[-1]["host"].startswith("localhost:")


def test_a_cut_download_is_resumed_with_range_and_if_range(tmp_path: Path) -> None:
    script = Script([ranged('"v1"', cut_at=40_000), ranged('"v1"', cut_at=20_000), ranged('"v1"')])
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY
    assert [request.get("range") for request in script.seen] == [None, "bytes=40000-", "bytes=60000-"]
    assert script.seen[1]["if-range"] == '"v1"'


def test_a_file_that_changed_is_fetched_from_the_beginning(tmp_path: Path) -> None:
    script = Script([ranged('"v1"', cut_at=40_000), ranged('"v2"')])
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY


def test_a_weak_etag_is_not_used_to_resume(tmp_path: Path) -> None:
    script = Script([ranged('W/"v1"', cut_at=40_000), status(200, BODY)])
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY
    assert "range" not in script.seen[1]


def test_an_outage_is_tried_again_for_the_time_that_the_limits_allow(tmp_path: Path) -> None:
    script = Script([status(503)])
    error = rejection(script, tmp_path, retry_seconds=10)
    assert error.reason is Reason.DATASET_UNAVAILABLE
    assert f"{len(script.seen)} attempts in 10 s" in error.message
    assert len(script.seen) >= 5
    once = Script([status(503)])
    rejection(once, tmp_path, retry_seconds=0)
    assert len(once.seen) == 1
    with serving(Script([status(500), status(429), status(200, BODY)])) as url:
        assert fetch(url, tmp_path) == BODY


def test_a_port_without_a_listener_is_unavailable(tmp_path: Path) -> None:
    with serving(Script([status(200)])) as url:
        pass
    with pytest.raises(StageError) as caught:
        fetch(url, tmp_path)
    assert caught.value.reason is Reason.DATASET_UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(401), Reason.DATASET_ACCESS_DENIED),
        (
            status(403, b"<Code>AccessDenied</Code><Message>Access Denied</Message>"),
            Reason.DATASET_ACCESS_DENIED,
        ),
        (
            status(403, b"<Code>AccessDenied</Code><Message>Request has expired</Message>"),
            Reason.DATASET_URL_EXPIRED,
        ),
        (status(400, b"<Code>ExpiredToken</Code>"), Reason.DATASET_URL_EXPIRED),
        (
            status(403, b"AuthenticationFailed: Signature not valid in the specified time frame"),
            Reason.DATASET_URL_EXPIRED,
        ),
        (status(404), Reason.DATASET_NOT_FOUND),
        (status(410), Reason.DATASET_URL_EXPIRED),
        (status(418), Reason.DATASET_UNAVAILABLE),
        (status(200, b"<Error><Code>NoSuchKey</Code></Error>"), Reason.DATASET_NOT_FOUND),
        (status(200, b"<html><input type=password></html>"), Reason.DATASET_ACCESS_DENIED),
        (
            status(
                403,
                gzip.compress(b"<Error><Code>ExpiredToken</Code></Error>", mtime=0),
                Content_Encoding="gzip",
            ),
            Reason.DATASET_URL_EXPIRED,
        ),
        (status(200, BODY, Content_Encoding="br"), Reason.DATASET_UNAVAILABLE),
    ],
)
def test_a_rejection_has_its_own_reason_and_is_not_retried(
    tmp_path: Path, answer: Answer, reason: Reason
) -> None:
    script = Script([answer])
    assert rejection(script, tmp_path).reason is reason
    assert len(script.seen) == 1


def test_size_is_bounded_with_and_without_a_declared_length(tmp_path: Path) -> None:
    assert rejection(Script([status(200, BODY)]), tmp_path, size=1000).reason is Reason.DATASET_TOO_LARGE

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)
        handler.close_connection = True

    assert rejection(Script([endless]), tmp_path, size=1000).reason is Reason.DATASET_TOO_LARGE


def test_redirects_are_followed_and_checked_again(tmp_path: Path) -> None:
    with (
        serving(Script([status(200, BODY)])) as final,
        serving(Script([status(302, Location=final)])) as first,
    ):
        assert fetch(first, tmp_path) == BODY
    loop = Script([status(302, Location="/again")])
    assert rejection(loop, tmp_path).reason is Reason.DATASET_UNAVAILABLE
    assert len(loop.seen) == 6
    leak = rejection(Script([status(302, Location="ftp://elsewhere/file")]), tmp_path)
    assert leak.reason is Reason.DATASET_ADDRESS_FORBIDDEN


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1.2.3/x",
        "http://example.com/x",
        "file:///etc/passwd",
        "not a url",
    ],
)
def test_private_addresses_and_other_schemes_are_forbidden(tmp_path: Path, url: str) -> None:
    with pytest.raises(StageError) as caught:
        fetch(url, tmp_path, allow=False)
    assert caught.value.reason is Reason.DATASET_ADDRESS_FORBIDDEN


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost", "[::1]"]
)
def test_every_spelling_of_loopback_is_forbidden(tmp_path: Path, host: str) -> None:
    with pytest.raises(StageError) as caught:
        fetch(f"https://{host}/x", tmp_path, allow=False)
    assert caught.value.reason is Reason.DATASET_ADDRESS_FORBIDDEN


def test_a_name_that_later_resolves_to_a_private_address_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding fails, because each connection checks an address and connects to exactly this address."""
    connected: list[str] = []
    answers = iter(["93.184.216.34", "127.0.0.1"])

    def resolve(_host: str, port: int, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def refuse(_self: Any, host: str, *_arguments: Any) -> None:
        connected.append(host)
        raise httpcore.ConnectError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", refuse)
    with pytest.raises(StageError) as caught:
        fetch("https://rebinding.example/x", tmp_path, allow=False)
    assert caught.value.reason is Reason.DATASET_ADDRESS_FORBIDDEN
    assert connected == ["93.184.216.34"]


def test_a_redirect_from_https_to_http_is_forbidden(tmp_path: Path) -> None:
    authority, server_side = tls()
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    plain = Script([status(200, BODY)])
    with http_server(plain) as elsewhere:
        script = Script([status(302, Location=f"{elsewhere}/file")])
        with serving(script, server_side) as url, pytest.raises(StageError) as caught:
            fetch(url, tmp_path, context=client_side)
    assert caught.value.reason is Reason.DATASET_ADDRESS_FORBIDDEN
    assert plain.seen == []


def test_a_download_from_a_slow_server_ends_at_the_deadline(tmp_path: Path) -> None:
    """The server is slow in the header or in the body."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        for letter in b"HTTP/1.0 200 OK\r\nX-Padding: " + b"x" * 1000:
            handler.wfile.write(bytes([letter]))
            time.sleep(0.05)

    began = time.monotonic()
    error = rejection(Script([drip]), tmp_path, seconds=1)
    slow = rejection(Script([ranged('"v1"', pause_seconds=0.5)]), tmp_path, seconds=1)
    assert {error.reason, slow.reason} == {Reason.DATASET_UNAVAILABLE}
    assert "within 1 seconds" in error.message
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("label", ["gzip", "x-gzip", "aws-chunked,gzip"])
def test_a_body_in_gzip_coding_is_decoded(tmp_path: Path, label: str) -> None:
    packed = gzip.compress(BODY)
    script = Script([ranged('"v1"', packed, cut_at=100, headers={"Content-Encoding": label})])
    script.answers.append(ranged('"v1"', packed, headers={"Content-Encoding": label}))
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY
    assert script.seen[0]["accept-encoding"] == "identity"
    assert script.seen[1]["range"] == "bytes=100-"


def test_a_body_that_is_only_labeled_gzip_stays_as_it_is(tmp_path: Path) -> None:
    with serving(Script([status(200, BODY, Content_Encoding="gzip")])) as url:
        assert fetch(url, tmp_path) == BODY


def test_a_gzip_body_must_be_complete_and_within_the_limit_when_unpacked(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(10**6))
    bomb = rejection(Script([status(200, packed, Content_Encoding="gzip")]), tmp_path, size=10**5)
    assert bomb.reason is Reason.DATASET_TOO_LARGE
    broken = rejection(Script([status(200, packed[:-20], Content_Encoding="gzip")]), tmp_path)
    assert broken.reason is Reason.MALFORMED_DATASET


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 5-9/10"},
        {"Content-Range": "bytes nonsense"},
        {},
        {"Content-Range": "bytes 0-9/10"},
    ],
)
def test_a_part_that_was_not_requested_is_not_used(tmp_path: Path, headers: dict[str, str]) -> None:
    named = {name.replace("-", "_"): value for name, value in headers.items()}
    assert (
        rejection(Script([status(206, b"0123456789", **named)]), tmp_path).reason
        is Reason.DATASET_UNAVAILABLE
    )


def test_a_range_that_no_longer_exists_restarts_the_file(tmp_path: Path) -> None:
    script = Script([ranged('"v1"', cut_at=40_000), status(416), ranged('"v2"')])
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY
    assert "range" not in script.seen[2]


def test_the_pause_that_the_server_requests_is_kept(tmp_path: Path) -> None:
    paused: list[float] = []
    with serving(Script([status(503, Retry_After="7"), status(200, BODY)])) as url:
        download(url, tmp_path / "x", Limits(10**9, 60, True), lambda _d, _t: None, sleep=paused.append)
    assert 7 <= paused[0] <= 7.7
    assert len(paused) == 1


def test_progress_is_reported_in_bytes(tmp_path: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    with serving(Script([status(200, BODY)])) as url:
        download(
            url, tmp_path / "x", Limits(10**9, 60, True), lambda done, total: heard.append((done, total))
        )
    assert heard[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
