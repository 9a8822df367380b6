"""Models from a real HTTP server on loopback with the hub's protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.hub_model import HubModel
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.servers.loopback import COMMIT, TOKEN, Hub, http_server


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub.of_folder(tiny_model)
    with http_server(hub, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield hub


def open_model(
    folder: Path, repository: str = "org/model", revision: str = "main", token: str | None = None
) -> HubModel:
    return HubModel(repository, revision, token, folder, sleep=lambda _seconds: None)


def test_a_repository_quantizes_to_the_bytes_of_the_same_folder(
    hub: Hub, tmp_path: Path, tiny_model: Path
) -> None:
    source = open_model(tmp_path / "download")
    remote = quantize_model(source, WorkspaceLayout(tmp_path / "remote"), NullReporter())
    local = quantize_model(DirectoryModel(tiny_model), WorkspaceLayout(tmp_path / "local"), NullReporter())
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
    """The port has no listener, or the name does not resolve."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(StageError) as caught:
        open_model(tmp_path)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
    assert "attempts in 600 s" in caught.value.message


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("repository", "revision"), [("org/other", "main"), ("org/model", "v2"), ("not a repository", "main")]
)
def test_a_missing_source_is_not_found(tmp_path: Path, repository: str, revision: str) -> None:
    with pytest.raises(StageError) as caught:
        open_model(tmp_path, repository, revision)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_a_gated_repository_needs_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(StageError) as caught:
        open_model(tmp_path / "without")
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    assert open_model(tmp_path / "with", token=TOKEN).commit == COMMIT


def test_an_unknown_token_is_denied(hub: Hub, tmp_path: Path) -> None:
    hub.valid_tokens.clear()
    with pytest.raises(StageError) as caught:
        open_model(tmp_path, token="hf_wrong")
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    assert "hf_wrong" not in caught.value.message


@pytest.mark.parametrize(
    "information",
    [b"", b"<html>", b"[]", b"{}", b'{"id": "org/model"}', b'{"id": "org/model", "sha": "../../etc"}'],
)
def test_a_response_outside_the_hubs_api_is_an_outage(hub: Hub, tmp_path: Path, information: bytes) -> None:
    hub.information = information
    with pytest.raises(StageError) as caught:
        open_model(tmp_path)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE


def test_a_process_that_resumes_uses_the_commit_of_the_first(hub: Hub, tmp_path: Path) -> None:
    """The branch may have moved in the meantime, but a folder has the files of one commit."""
    assert open_model(tmp_path).commit == COMMIT
    hub.information = b'{"id": "org/model", "sha": "%s"}' % (b"f" * 40)
    with pytest.raises(StageError):
        open_model(tmp_path)  # this hub has no files of the newer commit
    assert f"/api/models/org/model/revision/{COMMIT}" in hub.paths


def test_progress_is_reported_in_bytes(hub: Hub, tmp_path: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    size = len(hub.files["model.safetensors"])
    open_model(tmp_path).fetch("model.safetensors", lambda done, total: heard.append((done, total)))
    assert heard[0] == (0, size)
    assert heard[-1] == (size, size)


def test_without_a_commit_digests_identify_the_model_and_without_both_it_is_refused(
    hub: Hub, tmp_path: Path
) -> None:
    """Otherwise the model cache could hold another model under this name."""
    siblings = [
        {"rfilename": name, "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}
        for name, content in hub.files.items()
    ]
    hub.commit = "main"
    hub.information = json.dumps({"siblings": siblings}).encode()
    first = open_model(tmp_path / "a").identity()
    assert first["commit"] is None
    assert first["files"].keys() >= {"config.json", "model.safetensors"}
    hub.information = json.dumps({"siblings": [{"rfilename": name} for name in hub.files]}).encode()
    with pytest.raises(StageError, match=r"neither for model\.safetensors") as caught:
        open_model(tmp_path / "b")
    assert caught.value.reason is Reason.INVALID_MODEL


def test_an_outage_during_the_weights_repeats_their_progress_and_nothing_else(
    hub: Hub, tmp_path: Path
) -> None:
    """The operator must not see an earlier activity again, because weights are in the workspace by then."""
    waits: list[None] = []
    model = HubModel(
        "org/model", "main", None, tmp_path, lambda _seconds: None, waiting=lambda: waits.append(None)
    )
    heard: list[tuple[int, int | None]] = []
    hub.failures = 3
    model.fetch("model.safetensors", lambda done, total: heard.append((done, total)))
    assert waits == []
    assert len([done for done, _ in heard if done == 0]) >= 4
