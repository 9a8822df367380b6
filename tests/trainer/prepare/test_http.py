"""Downloads from real servers on loopback, over real TLS, with the faults that happen."""

from __future__ import annotations

import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.http import Limits, download, is_public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BODY = bytes(range(256)) * 400
SECRET = "X-Signature=deadbeefcafe"


@dataclass
class Script:
    """Answers of a server, one per request; the last one repeats. `seen` are the requests' headers."""

    answers: list[Callable[[BaseHTTPRequestHandler], None]]
    seen: list[dict[str, str]] = field(default_factory=list)


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def ranged(etag: str, *, cut_at: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """Serve BODY with Range and If-Range; cut the connection after `cut_at` bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        resumed = wanted is not None and handler.headers.get("If-Range") == etag
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if resumed and wanted else 0
        handler.send_response(206 if resumed else 200)
        if resumed:
            handler.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(BODY) - first))
        handler.end_headers()
        handler.wfile.write(BODY[first : None if cut_at is None else first + cut_at])
        if cut_at is not None:
            handler.close_connection = True

    return answer


@contextmanager
def serving(script: Script, context: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.seen.append({name.lower(): value for name, value in self.headers.items()})
            script.answers[min(len(script.seen), len(script.answers)) - 1](self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- dictated by the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'http' if context is None else 'https'}://localhost:{server.server_port}/data.jsonl?{SECRET}"
    finally:
        server.shutdown()
        server.server_close()


def fetch(
    url: str, tmp_path: Path, *, allow: bool = True, size: int = 10**9, context: ssl.SSLContext | None = None
) -> bytes:
    target = tmp_path / "dataset"
    download(
        url,
        target,
        Limits(size, 60, allow),
        lambda _done, _total: None,
        ssl_context=context,
        sleep=lambda _s: None,
    )
    return target.read_bytes()


def refusal(script: Script, tmp_path: Path, **options: Any) -> StageError:
    with serving(script) as url, pytest.raises(StageError) as caught:
        fetch(url, tmp_path, **options)
    assert SECRET.partition("=")[2] not in caught.value.message
    assert "localhost" not in caught.value.message
    return caught.value


def test_a_file_arrives_over_verified_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_side)
    client_side = ssl.create_default_context()
    script = Script([status(200, BODY)])
    with serving(script, server_side) as url:
        with pytest.raises(StageError) as caught:
            fetch(url, tmp_path, context=client_side)
        assert caught.value.reason is Reason.DATASET_UNAVAILABLE
        authority.configure_trust(client_side)
        assert fetch(url, tmp_path, context=client_side) == BODY
    assert script.seen[-1]["host"].startswith("localhost:")


def test_a_cut_download_goes_on_with_range_and_if_range(tmp_path: Path) -> None:
    script = Script([ranged('"v1"', cut_at=40_000), ranged('"v1"', cut_at=20_000), ranged('"v1"')])
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY
    assert [request.get("range") for request in script.seen] == [None, "bytes=40000-", "bytes=60000-"]
    assert script.seen[1]["if-range"] == '"v1"'


def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path: Path) -> None:
    script = Script([ranged('"v1"', cut_at=40_000), ranged('"v2"')])
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY


def test_a_weak_etag_is_not_used_to_resume(tmp_path: Path) -> None:
    script = Script([ranged('W/"v1"', cut_at=40_000), status(200, BODY)])
    with serving(script) as url:
        assert fetch(url, tmp_path) == BODY
    assert "range" not in script.seen[1]


def test_an_outage_is_tried_three_times(tmp_path: Path) -> None:
    script = Script([status(503)])
    error = refusal(script, tmp_path)
    assert error.reason is Reason.DATASET_UNAVAILABLE
    assert len(script.seen) == 3
    with serving(Script([status(500), status(429), status(200, BODY)])) as url:
        assert fetch(url, tmp_path) == BODY


def test_a_port_where_nobody_listens_is_unavailable(tmp_path: Path) -> None:
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
    ],
)
def test_a_refusal_has_its_own_reason_and_is_not_retried(
    tmp_path: Path, answer: Callable[[BaseHTTPRequestHandler], None], reason: Reason
) -> None:
    script = Script([answer])
    assert refusal(script, tmp_path).reason is reason
    assert len(script.seen) == 1


def test_size_is_bounded_with_and_without_a_declared_length(tmp_path: Path) -> None:
    assert refusal(Script([status(200, BODY)]), tmp_path, size=1000).reason is Reason.DATASET_TOO_LARGE

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)
        handler.close_connection = True

    assert refusal(Script([endless]), tmp_path, size=1000).reason is Reason.DATASET_TOO_LARGE


def test_redirects_are_followed_and_checked_again(tmp_path: Path) -> None:
    with (
        serving(Script([status(200, BODY)])) as final,
        serving(Script([status(302, Location=final)])) as first,
    ):
        assert fetch(first, tmp_path) == BODY
    loop = Script([status(302, Location="/again")])
    assert refusal(loop, tmp_path).reason is Reason.DATASET_UNAVAILABLE
    assert len(loop.seen) == 6
    leak = refusal(Script([status(302, Location="ftp://elsewhere/file")]), tmp_path)
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
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("100.64.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 -- an address to refuse
    ],
)
def test_public_addresses_are_told_from_all_others(address: str, *, public: bool) -> None:
    assert is_public(address) is public
