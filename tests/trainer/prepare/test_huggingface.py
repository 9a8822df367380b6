"""The hub's protocol from a real HTTP server on loopback, read by huggingface_hub itself."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantise import quantise
from finetune_trainer.sources.huggingface import HubModel
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry import NullReporter
from finetune_trainer.workspace import WorkspaceLayout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"


class Hub:
    """Which repository there is and how it answers."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.failures = 0
        self.gated = False

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = handler.path.partition("?")[0]
        allowed = handler.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.failures:
            self.failures -= 1
            self._send(handler, 503, b"", body=body)
        elif not path.removeprefix("/api/models").startswith("/org/model"):
            self._send(handler, 404, b"{}", body=body, X_Error_Code="RepoNotFound")
        elif path.startswith("/api/models/org/model/revision/"):
            if path.rsplit("/", 1)[1] not in {"main", COMMIT}:
                self._send(handler, 404, b"{}", body=body, X_Error_Code="RevisionNotFound")
                return
            siblings = [{"rfilename": name} for name in self.files]
            document = {"id": "org/model", "sha": COMMIT, "siblings": siblings}
            self._send(
                handler, 200, json.dumps(document).encode(), body=body, Content_Type="application/json"
            )
        elif self.gated and not allowed:
            self._send(handler, 403, b"{}", body=body, X_Error_Code="GatedRepo")
        else:
            content = self.files[path.rsplit("/", 1)[1]]
            etag = f'"{len(content):040d}"'
            self._send(handler, 200, content, body=body, ETag=etag, X_Repo_Commit=COMMIT)

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, code: int, content: bytes, *, body: bool, **headers: str
    ) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if body:
            handler.wfile.write(content)


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self, body=True)

        def do_HEAD(self) -> None:
            hub.answer(self, body=False)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- dictated by the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(tiny_model)
    with serving(hub) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield hub


def open_model(
    folder: Path, repository: str = "org/model", revision: str = "main", token: str | None = None
) -> HubModel:
    return HubModel(repository, revision, token, folder, sleep=lambda _seconds: None)


def test_a_repository_quantises_to_the_bytes_of_the_same_folder(
    hub: Hub, tmp_path: Path, tiny_model: Path
) -> None:
    source = open_model(tmp_path / "download")
    remote = quantise(source, WorkspaceLayout(tmp_path / "remote"), NullReporter())
    local = quantise(DirectoryModel(tiny_model), WorkspaceLayout(tmp_path / "local"), NullReporter())
    assert (remote.commit, local.commit) == (COMMIT, None)
    assert remote.digest == local.digest
    assert list((tmp_path / "download").rglob("*.safetensors")) == []
    assert "model.safetensors" in hub.files


def test_a_short_outage_is_survived_and_a_long_one_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.failures = 1
    assert open_model(tmp_path).commit == COMMIT
    hub.failures = 10_000
    with pytest.raises(StageError) as caught:
        open_model(tmp_path)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://hub.invalid"])
def test_a_hub_that_cannot_be_reached_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """Nothing listens, or the name does not resolve."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(StageError) as caught:
        open_model(tmp_path)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
    assert "after 3 tries" in caught.value.message


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("repository", "revision"), [("org/other", "main"), ("org/model", "v2"), ("not a repository", "main")]
)
def test_what_does_not_exist_is_not_found(tmp_path: Path, repository: str, revision: str) -> None:
    with pytest.raises(StageError) as caught:
        open_model(tmp_path, repository, revision)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_a_gated_repository_needs_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(StageError) as caught:
        open_model(tmp_path / "without")
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    assert open_model(tmp_path / "with", token=TOKEN).commit == COMMIT
