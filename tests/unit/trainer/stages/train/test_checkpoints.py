from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.stages.train.checkpoint_files import REQUIRED, write_files
from finetune_trainer.stages.train.checkpoints import (
    KEPT,
    newest_checkpoint,
    publish_checkpoint,
    remove_older,
    saved_steps,
    whole_checkpoint,
)
from finetune_trainer.stages.train.origin import Origin

from tests.support.snapshots import snapshot

RUN = Origin({"specHash": "mine"}, began=None)
FILES = sorted(REQUIRED | {"run.json"})


def write(root: Path, step: int, spec_hash: str = "mine") -> Path:
    return publish_checkpoint(
        root / "checkpoints",
        step,
        lambda folder: write_files(folder, snapshot(step=step), {"specHash": spec_hash}),
    )


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def test_the_newest_checkpoints_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    assert len(names(tmp_path)) == KEPT
    assert newest_checkpoint(tmp_path / "checkpoints", RUN) == (
        100,
        tmp_path / "checkpoints" / "checkpoint-100",
    )


def test_checkpoints_of_chosen_steps_stay_until_they_are_chosen_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def write_and_keep(step: int, *keep: int) -> None:
        publish_checkpoint(
            folder, step, lambda written: write_files(written, snapshot(step=step), RUN.document), keep
        )

    for step in (1, 2, 3, 4, 5):
        write_and_keep(step, 1, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert remove_older(folder, 5, keep={2})
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-5"]
    assert not remove_older(folder, 5, keep={2})
    assert whole_checkpoint(folder, 2, RUN) == folder / "checkpoint-2"
    assert whole_checkpoint(folder, 2, Origin({"specHash": "other"}, began=None)) is None
    assert whole_checkpoint(folder, 4, RUN) is None
    write_and_keep(6)
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-6"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    target = path.parent.parent.parent / path.name
    shutil.move(path, target)
    path.symlink_to(target)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: list[Callable[[Path], object]] = [
    Path.unlink,
    _truncate,
    _flip,
    _link,
    _pipe,
    _folder,
    lambda path: path.write_bytes(b""),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_a_checkpoint_with_a_broken_file_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, fault: int
) -> None:
    write(tmp_path, 1)
    FAULTS[fault](write(tmp_path, 2) / name)
    found = newest_checkpoint(tmp_path / "checkpoints", RUN)
    assert found is not None
    assert found[0] == 1
    assert "checkpoint of step 2 is skipped" in caplog.text


def _without(name: str) -> Callable[[Path], None]:
    def remove(seal: Path) -> None:
        digests = json.loads(seal.read_text())
        del digests[name]
        seal.write_text(json.dumps(digests))
        (seal.parent / name).unlink()

    return remove


SEALS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty file": lambda seal: seal.write_bytes(b""),
    "empty object": lambda seal: seal.write_text("{}"),
    "truncated": _truncate,
    "a list": lambda seal: seal.write_text("[]"),
    "null": lambda seal: seal.write_text("null"),
    "not text": lambda seal: seal.write_bytes(b"\xff\xfe{}"),
    "deep": lambda seal: seal.write_text("[" * 100_000),
    "another folder's file": lambda seal: seal.write_text(json.dumps({"../x": "sha256:0"})),
    "numbers": lambda seal: seal.write_text(json.dumps(dict.fromkeys(FILES, 5))),
    "a link": _link,
    "without the optimizer": _without("optimizer.pt"),
    "without the generators": _without("rng_state.pth"),
    "with a file too many": lambda seal: (seal.parent / "scaler.pt").write_bytes(b"x"),
}


@pytest.mark.parametrize("fault", SEALS)
def test_a_checkpoint_with_a_broken_seal_is_skipped(tmp_path: Path, fault: str) -> None:
    write(tmp_path, 1)
    SEALS[fault](write(tmp_path, 2) / "files.json")
    found = newest_checkpoint(tmp_path / "checkpoints", RUN)
    assert found is not None
    assert found[0] == 1


def test_a_hidden_file_of_the_file_system_breaks_nothing(tmp_path: Path) -> None:
    (write(tmp_path, 2) / ".nfs0001").write_bytes(b"x")
    found = newest_checkpoint(tmp_path / "checkpoints", RUN)
    assert found is not None
    assert found[0] == 2


def test_a_checkpoint_under_the_name_of_another_step_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, 1).rename(tmp_path / "checkpoints" / "checkpoint-4")
    assert newest_checkpoint(tmp_path / "checkpoints", RUN) is None


def test_a_checkpoint_that_is_a_link_is_skipped(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert newest_checkpoint(tmp_path / "checkpoints", RUN) is None
    write(tmp_path, 2)
    write(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert (tmp_path / "elsewhere").is_dir()


def test_a_checkpoint_of_another_run_is_skipped_and_removed_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 50, spec_hash="other")
    write(tmp_path, 60, spec_hash="other")
    assert newest_checkpoint(tmp_path / "checkpoints", RUN) is None
    assert "specHash other, and this run has mine" in caplog.text
    write(tmp_path, 10)
    assert names(tmp_path) == ["checkpoint-10"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (write(tmp_path, 1) / "optimizer.pt").write_bytes(b"broken")
    write(tmp_path, 1)
    assert newest_checkpoint(tmp_path / "checkpoints", RUN) is not None
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_failed_write_leaves_the_older_checkpoints_and_no_partial_file(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)

    def fail(folder: Path) -> dict[str, str]:
        write_files(folder, snapshot(step=3), {})
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        publish_checkpoint(tmp_path / "checkpoints", 3, fail)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_the_rest_of_a_killed_write_is_removed(tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints.partial" / "checkpoint-9"
    partial.mkdir(parents=True)
    (partial / "optimizer.pt").write_bytes(b"half")
    write(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_the_saved_step_is_read_without_verification(tmp_path: Path) -> None:
    assert saved_steps(tmp_path / "checkpoints") is None
    write(tmp_path, 3)
    assert saved_steps(tmp_path / "checkpoints") == (3, 10)
    (write(tmp_path, 4) / "trainer_state.json").write_text("{")
    assert saved_steps(tmp_path / "checkpoints") == (3, 10)


def test_older_checkpoints_can_make_room(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    assert remove_older(tmp_path / "checkpoints", 2)
    assert names(tmp_path) == ["checkpoint-2"]
    assert not remove_older(tmp_path / "checkpoints", 2)


def test_other_folders_and_an_absent_folder_hold_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    for name in ("checkpoint-last", "checkpoint-007", "checkpoint-²", "checkpoint-1.tmp", "checkpoint-"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    (tmp_path / "file").touch()
    assert newest_checkpoint(tmp_path / "file") is None
