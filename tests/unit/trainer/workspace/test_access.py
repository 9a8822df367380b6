from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.access import require_workspace
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically

from tests.support.processes.open_folder import open_folder
from tests.support.processes.user import USER, message_as_user


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a workspace of the pod's user, with files of an earlier attempt."""
    with open_folder() as parent:
        yield made(parent / "workspace")


def made(folder: Path) -> Path:
    layout = WorkspaceLayout(folder)
    write_json_atomically(layout.marker("dataset"), {})
    write_json_atomically(layout.checkpoints / "checkpoint-2" / "state.json", {})
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER if os.geteuid() == 0 else -1, -1)
    return folder


def locked(root: Path, relative: str, mode: int) -> Callable[[], object]:
    os.chown(root / relative, os.geteuid(), -1)
    (root / relative).chmod(mode)
    return lambda: require_workspace(root)


def test_an_own_workspace_passes_and_keeps_its_files(root: Path) -> None:
    before = sorted(root.rglob("*"))
    assert message_as_user(lambda: require_workspace(root)) == ""
    assert sorted(root.rglob("*")) == before


def test_a_missing_workspace_is_made(tmp_path: Path) -> None:
    require_workspace(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("relative", "mode"),
    [
        (".", 0o555),
        ("markers", 0o555),
        ("train/checkpoints/checkpoint-2", 0o555),
        ("train", 0o700 if os.geteuid() == 0 else 0),
        ("markers/dataset.json", 0o600 if os.geteuid() == 0 else 0),
    ],
)
def test_a_path_that_a_later_stage_cannot_use_is_named(root: Path, relative: str, mode: int) -> None:
    message = message_as_user(locked(root, relative, mode))
    (root / relative).chmod(0o755)
    assert message.startswith("the pod's user must be able to read and write the workspace")
    assert str(root / relative) in message


def test_files_of_others_in_the_volumes_root_do_not_matter(root: Path) -> None:
    (root / "lost+found").mkdir()
    assert message_as_user(locked(root, "lost+found", 0)) == ""


def test_a_read_only_workspace_has_the_reason_of_a_denied_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_settings: object) -> None:
        raise OSError(30, "Read-only file system", str(tmp_path))

    monkeypatch.setattr("finetune_trainer.workspace.access._try_folder", refuse)
    with pytest.raises(StageError, match="Read-only file system") as caught:
        require_workspace(tmp_path)
    assert caught.value.reason is Reason.WORKSPACE_ACCESS_DENIED
