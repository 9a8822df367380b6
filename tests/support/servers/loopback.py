"""Loopback servers for the tests of sources: scripted responses, a hub, real object stores and a throttle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import Request, urlopen

import pytest

from tests.support.repository import ROOT

BINARIES = ROOT / ".cache" / "bin"
BODY = bytes(range(256)) * 400
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test_token"
ACCESS_KEY = "AKIATESTTESTTEST"
SECRET_KEY = "test/secret+key=0123456789"

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def http_server(
    answer: Answer,
    *,
    context: ssl.SSLContext | None = None,
    host: str = "localhost",
    bind: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[str]:
    """Serve every GET, HEAD, PUT, POST, PATCH and DELETE with `answer`, and yield the origin, which begins with `host`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            # In many tests the client disconnects.
            with contextlib.suppress(ConnectionError):
                answer(self)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815 -- dictated by the base class

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- dictated by the base class
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Keep errors of clients that reject our certificate out of the tests' output."""

    if ":" in host:
        Server.address_family, bind = socket.AF_INET6, (host, bind[1])
    server = Server(bind, Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        name = f"[{host}]" if ":" in host else host
        yield f"{'http' if context is None else 'https'}://{name}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Script:
    """Responses of a server, one per request; the last one repeats.

    `seen` holds the headers and request lines.
    """

    answers: list[Answer]
    seen: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append({name.lower(): value for name, value in handler.headers.items()})
        self.lines.append(handler.requestline)
        self.answers[min(len(self.seen), len(self.answers)) - 1](handler)


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """Return an answer with a status, a body and headers (underscores stand for hyphens)."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return answer


def ranged(
    etag: str,
    body: bytes = BODY,
    *,
    cut_at: int | None = None,
    pause_seconds: float = 0.0,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Serve `body` with Range and If-Range.

    Cut the connection after `cut_at` bytes, and pause after each 16 KiB.
    """

    def answer(handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        resumed = wanted is not None and handler.headers.get("If-Range") == etag
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if resumed and wanted else 0
        handler.send_response(206 if resumed else 200)
        if resumed:
            handler.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(body) - first))
        handler.end_headers()
        end = len(body) if cut_at is None else min(len(body), first + cut_at)
        for start in range(first, end, 1 << 14):
            handler.wfile.write(body[start : min(end, start + (1 << 14))])
            if pause_seconds:
                time.sleep(pause_seconds)

    return answer


class Hub:
    """A hub with one repository. `files` are keyed by path; `kind` is models or datasets."""

    def __init__(self, kind: str, files: dict[str, bytes], name: str = "org/model") -> None:
        self.kind = kind
        self.name = name
        self.files = files
        self.commit = COMMIT
        self.failures = 0
        self.gated = False
        self.valid_tokens = {TOKEN}
        self.information: bytes | None = None  # replaces the response that describes the repository
        self.paths: list[str] = []

    @classmethod
    def of_folder(cls, folder: Path) -> Hub:
        """Serve a model folder."""
        return cls("models", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(handler.path.partition("?")[0])
        self.paths.append(path)
        authorization = handler.headers.get("Authorization")
        token = (authorization or "").removeprefix("Bearer ")
        prefix = "" if self.kind == "models" else f"/{self.kind}"
        if self.failures:
            self.failures -= 1
            status(503)(handler)
        elif authorization is not None and token not in self.valid_tokens:
            message = "Invalid credentials in Authorization header"
            status(401, json.dumps({"error": message}).encode(), X_Error_Message=message)(handler)
        elif match := re.fullmatch(rf"/api/{self.kind}/{self.name}/revision/(.+)", path):
            self._describe(match[1], handler)
        elif match := re.fullmatch(rf"{prefix}/{self.name}/resolve/({self.commit})/(.+)", path):
            if self.gated and not authorization:
                status(403, b"{}", X_Error_Code="GatedRepo")(handler)
            elif match[2] in self.files:
                content = self.files[match[2]]
                digest = hashlib.sha256(content).hexdigest()
                ranged_or_whole(content, f'"{digest}"', X_Repo_Commit=self.commit)(handler)
            else:
                status(404, b"{}", X_Error_Code="EntryNotFound")(handler)
        else:
            status(404, b"{}", X_Error_Code="RepoNotFound")(handler)

    def _describe(self, revision: str, handler: BaseHTTPRequestHandler) -> None:
        if revision not in {"main", self.commit}:
            status(404, b"{}", X_Error_Code="RevisionNotFound")(handler)
            return
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        document = json.dumps({"id": self.name, "sha": self.commit, "siblings": siblings}).encode()
        body = document if self.information is None else self.information
        status(200, body, Content_Type="application/json")(handler)


def ranged_or_whole(content: bytes, etag: str, **headers: str) -> Answer:
    """Serve the content from its start or from the first byte of a Range, as a hub does."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        first = int(match[1]) if match else 0
        extra = {"Content_Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if match else {}
        status(206 if match else 200, content[first:], ETag=etag, **extra, **headers)(handler)

    return answer


def binary(name: str) -> str:
    """Return the path of a program that a Go module of this repository builds."""
    path = BINARIES / name
    if not path.is_file():
        target = {"containerd": "containerd", "cosign": "supply-chain", "syft": "supply-chain"}
        pytest.fail(f"{name} must be at {path}: run make {target.get(name, 'object-stores')} first")
    return str(path)


@contextmanager
def running(command: list[str], port: int, environment: dict[str, str], seconds: float = 60) -> Iterator[str]:
    """Run a server and wait until it listens on the port, for at most `seconds`; yields its origin."""
    process = subprocess.Popen(
        command,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Some servers run processes of their own, which must end with them.
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} must listen on port {port}, found it ended or silent")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run a real S3 server (versitygw) over `folder`, with one user, and yield its endpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [binary("versitygw"), "--port", f"127.0.0.1:{port}", "--quiet", "posix", str(folder)]
    environment = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    with running(command, port, environment) as endpoint:
        yield endpoint


@contextmanager
def gcs_server(objects: dict[str, bytes], bucket: str) -> Iterator[str]:
    """Run a Cloud Storage server with one bucket and yield its URL.

    The server is fake-gcs-server, which checks no credentials.
    """
    port = free_port()
    place = f"127.0.0.1:{port}"
    command = [binary("fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with running([*command, "-public-host", place, "-backend", "memory"], port, {}) as endpoint:
        _post(f"{endpoint}/storage/v1/b?project=test", json.dumps({"name": bucket}).encode())
        for name, content in objects.items():
            _post(f"{endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", content)
        yield endpoint


def _post(url: str, body: bytes) -> None:
    request = Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 -- loopback
    with urlopen(request) as response:  # noqa: S310 -- loopback
        assert response.status == 200


@contextmanager
def throttle(endpoint: str, bytes_per_second: int) -> Iterator[tuple[str, list[int]]]:
    """Forward connections to `endpoint` and slow the responses down.

    Yields an endpoint and the number of bytes forwarded so far.
    """
    host, _, port = endpoint.removeprefix("http://").partition(":")
    passed = [0]
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(source: socket.socket, target: socket.socket, *, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                target.sendall(data)
                if slow:
                    passed[0] += len(data)
                    time.sleep(len(data) / bytes_per_second)
        for side in (source, target):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port))) as server:
            requests = threading.Thread(target=forward, args=(client, server), kwargs={"slow": False})
            requests.start()
            forward(server, client, slow=True)
            requests.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=relay, args=(client,), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", passed
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # ends the call of accept, which close does not
        accepting.join()
        listener.close()
