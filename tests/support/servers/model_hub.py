"""A server with a hub's API over a model folder: ranges, counted requests and a limited speed."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REPOSITORY = "org/model"
_PIECE = 256 * 1024


class ModelHub:
    """Serves `folder` as REPOSITORY at COMMIT.

    `requests` counts the GETs of each file, and `sent` its bytes.
    """

    def __init__(self, folder: Path, bytes_per_second: float | None = None) -> None:
        self.folder = folder
        self.bytes_per_second = bytes_per_second
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = handler.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            names = sorted(item.name for item in self.folder.iterdir() if item.is_file())
            document = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            content = json.dumps(document).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        else:
            self._send_file(handler, self.folder / path.rsplit("/", 1)[1], body=body)

    def _send_file(self, handler: BaseHTTPRequestHandler, path: Path, *, body: bool) -> None:
        if not path.is_file():
            handler.send_error(404)
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        last = int(wanted[2]) if wanted and wanted[2] else size - 1
        handler.send_response(206 if wanted else 200)
        if wanted:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        handler.send_header("ETag", f'"{path.stat().st_mtime_ns:040d}"')
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.end_headers()
        if not body:
            return
        self.requests[path.name] += 1
        with path.open("rb") as file:
            file.seek(first)
            left = last + 1 - first
            while left:
                piece = file.read(min(left, _PIECE))
                handler.wfile.write(piece)
                self.sent[path.name] += len(piece)
                left -= len(piece)
                if self.bytes_per_second is not None:
                    time.sleep(len(piece) / self.bytes_per_second)

    @property
    def weight_requests(self) -> int:
        """Return the number of requests for weight files."""
        return sum(count for name, count in self.requests.items() if name.endswith(".safetensors"))


@contextmanager
def serving(hub: ModelHub, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve the hub and yield its endpoint, by default on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                hub.answer(self, body=True)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed

        def do_HEAD(self) -> None:
            hub.answer(self, body=False)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- dictated by the base class
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
