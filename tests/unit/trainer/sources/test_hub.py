"""A repository on a hub: its commit, its files and the failures that may pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import MODEL
from finetune_trainer.sources.hub import HubRepository
from finetune_trainer.sources.retry import PAUSES_SECONDS

from tests.support.servers.loopback import COMMIT, Hub, http_server


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub.of_folder(tiny_model)
    with http_server(hub, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield hub


def test_files_lie_below_the_folder_of_the_commit(hub: Hub, tmp_path: Path) -> None:
    repository = HubRepository(MODEL, "org/model", "main", None, tmp_path)
    assert repository.commit == COMMIT
    assert repository.sizes.keys() == hub.files.keys()
    path = repository.download("config.json", lambda _done, _total: None)
    assert path == tmp_path / COMMIT / "config.json"
    assert path.read_bytes() == hub.files["config.json"]


def test_a_broken_note_of_the_commit_is_ignored(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / ".commit.json").write_text("{broken")
    assert HubRepository(MODEL, "org/model", "main", None, tmp_path).commit == COMMIT
    assert "/api/models/org/model/revision/main" in hub.paths


@pytest.mark.usefixtures("hub")
def test_an_invalid_name_is_not_found_without_a_retry(tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(StageError, match="ORGANIZATION/NAME") as caught:
        HubRepository(MODEL, "a/b/c", "main", None, tmp_path, sleep=pauses.append)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert pauses == []


def test_a_response_outside_the_api_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.information = b"<html>"
    pauses: list[float] = []
    with pytest.raises(StageError, match="after 3 attempts: a response that does not follow") as caught:
        HubRepository(MODEL, "org/model", "main", None, tmp_path, sleep=pauses.append)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
    assert pauses == list(PAUSES_SECONDS)
