from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train import checkpoint_writer
from finetune_trainer.stages.train.checkpoint_files import write_files
from finetune_trainer.stages.train.checkpoint_writer import CheckpointWriter, WaitingTime
from finetune_trainer.stages.train.checkpoints import newest_checkpoint
from finetune_trainer.stages.train.snapshot import Snapshot

from tests.support.snapshots import snapshot


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CheckpointWriter]:
    made = CheckpointWriter(tmp_path / "checkpoints", {"specHash": "x"})
    yield made
    made.wait()


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def fail(monkeypatch: pytest.MonkeyPatch, errors: list[Exception]) -> None:
    """Let the writes of files fail with these errors in turn, then work."""

    def write(folder: Path, state: Snapshot, run: Mapping[str, Any]) -> dict[str, str]:
        digests = write_files(folder, state, run)
        if errors:
            raise errors.pop(0)
        return digests

    monkeypatch.setattr(checkpoint_writer, "write_files", write)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_snapshot_is_written_beside_the_caller(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller goes on while the write waits for this test."""
    go_on = threading.Event()

    def write(folder: Path, state: Snapshot, run: Mapping[str, Any]) -> dict[str, str]:
        assert go_on.wait(60)
        return write_files(folder, state, run)

    monkeypatch.setattr(checkpoint_writer, "write_files", write)
    writer.submit(snapshot(step=1))
    writer.wait(0.01)
    assert (writer.durable, writer.busy) == (None, True)
    go_on.set()
    writer.submit(snapshot(step=2))
    assert (tmp_path / "checkpoints" / "checkpoint-1").exists(), "the second write waits for the first"
    writer.wait()
    assert (writer.durable, writer.busy) == (2, False)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_without_a_new_thread_the_snapshot_is_written_by_the_caller(
    writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading, "Thread", _NoThread)
    writer.submit(snapshot(step=1))
    assert writer.durable == 1


def test_a_state_that_is_not_finite_is_never_written(writer: CheckpointWriter, tmp_path: Path) -> None:
    writer.submit(snapshot(step=1))
    writer.submit(snapshot(step=2, value=math.nan))
    with pytest.raises(StageError, match="after step 2") as caught:
        writer.wait()
    assert caught.value.reason is Reason.NON_FINITE_LOSS
    assert names(tmp_path) == ["checkpoint-1"]
    writer.wait()


def test_a_hiccup_of_the_disk_is_tried_once_more(
    writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail(monkeypatch, [OSError(errno.EIO, "Input/output error")])
    writer.submit(snapshot(step=1))
    writer.wait()
    assert writer.durable == 1
    assert "tried again" in caplog.text


def test_a_lasting_error_of_the_disk_is_raised_and_the_previous_checkpoint_is_kept(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.submit(snapshot(step=1))
    writer.wait()
    fail(monkeypatch, [OSError(errno.EIO, "Input/output error")] * 2)
    writer.submit(snapshot(step=2))
    with pytest.raises(OSError, match="Input/output"):
        writer.submit(snapshot(step=3))
    assert newest_checkpoint(tmp_path / "checkpoints") == (1, tmp_path / "checkpoints" / "checkpoint-1")
    assert writer.durable == 1


def test_a_full_disk_costs_the_older_checkpoint_first(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        writer.submit(snapshot(step=step))
    writer.wait()
    fail(monkeypatch, [full()])
    writer.submit(snapshot(step=3))
    writer.wait()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_a_disk_that_stays_full_ends_the_run_and_keeps_the_newest_checkpoint(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        writer.submit(snapshot(step=step))
    writer.wait()
    fail(monkeypatch, [full(), full()])
    writer.submit(snapshot(step=3))
    with pytest.raises(StageError, match="the checkpoint of step 2 is kept") as caught:
        writer.wait()
    assert caught.value.reason is Reason.WORKSPACE_FULL
    assert names(tmp_path) == ["checkpoint-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"], "no partial file is left"


def test_a_disk_that_is_full_from_the_beginning_ends_the_run(
    writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, [full()])
    writer.submit(snapshot(step=1))
    with pytest.raises(StageError, match="no checkpoint exists"):
        writer.wait()


def test_training_waits_for_at_most_a_thousandth_and_two_seconds() -> None:
    waiting = WaitingTime(100.0)
    assert waiting.allowed(100.0) == 2.0
    waiting.add(1.5)
    assert waiting.allowed(1100.0) == pytest.approx(1.5)
    waiting.add(10.0)
    assert waiting.allowed(1100.0) == 0.0
