"""Writes checkpoints in a thread beside the training, one at a time."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from finetune_trainer.contract.timestamps import utc_now
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.checkpoint_files import write_files
from finetune_trainer.stages.train.checkpoints import publish_checkpoint, remove_older
from finetune_trainer.workspace.disk_space import is_full, says_disk_full

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path
    from typing import Any

    from finetune_trainer.stages.train.snapshot import Snapshot

_log = logging.getLogger(__name__)

_SHARE = 0.001
_FREE_SECONDS = 2.0


class WaitingTime:
    """Limits the time for which training waits for checkpoints: a thousandth of its duration and two seconds.

    Writes shorter than a step need no wait. Tiny runs live on the two seconds.
    """

    def __init__(self, now: float) -> None:
        self._started = now
        self._waited = 0.0

    def allowed(self, now: float) -> float:
        """Return the seconds for which training may still wait."""
        return max(0.0, _FREE_SECONDS + _SHARE * (now - self._started) - self._waited)

    def add(self, seconds: float) -> None:
        """Count seconds of waiting."""
        self._waited += seconds


class CheckpointWriter:
    """Writes snapshots to `checkpoints` in a thread. `run` describes the run in each checkpoint."""

    def __init__(self, checkpoints: Path, run: Mapping[str, Any]) -> None:
        self.durable: int | None = None
        """Step of the newest checkpoint on the disk; whoever resumes from one sets it."""
        self.written: datetime | None = None
        """Time of the newest checkpoint of this process."""
        self._checkpoints = checkpoints
        self._run = run
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Wait for the last snapshot and begin to write this one; raises what `wait` raises."""
        self.wait()
        thread = threading.Thread(target=self._write_safely, args=(snapshot,), name="checkpoint")
        try:
            thread.start()
        except RuntimeError:
            # The container may start no more threads. Writing here only takes training's time.
            self._write_safely(snapshot)
        else:
            self._thread = thread

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the last snapshot, at most `seconds`.

        Raises StageError if it cannot be saved: NonFiniteLoss, or WorkspaceFull. Raises OSError after another failure.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if not self._thread.is_alive():
                self._thread = None
        if self._thread is None and self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._thread is not None and self._thread.is_alive()

    def _write_safely(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except BaseException as error:  # noqa: BLE001 -- `wait` raises it in the main thread
            self._error = error

    def _write(self, snapshot: Snapshot) -> None:
        snapshot.require_finite()
        started = time.monotonic()
        try:
            self._publish(snapshot)
        except (OSError, RuntimeError) as error:
            # A full disk may have room for one checkpoint fewer. Another error may be a hiccup of the network.
            full = self._is_full(error)
            if full and not self._make_room(snapshot):
                raise self._no_space(snapshot, error) from error
            _log.warning("checkpoint of step %d is tried again after %s", snapshot.step, error)
            self._publish_again(snapshot)
        self.durable = snapshot.step
        self.written = utc_now()
        _log.info(
            "checkpoint of step %d written in %.1f s (%.0f MB)",
            snapshot.step,
            time.monotonic() - started,
            snapshot.bytes / 1e6,
        )

    def _make_room(self, snapshot: Snapshot) -> bool:
        """Remove checkpoints that only serve if a newer one breaks; return whether there were any."""
        return self.durable is not None and remove_older(self._checkpoints, self.durable, snapshot.keep)

    def _publish(self, snapshot: Snapshot) -> None:
        publish_checkpoint(
            self._checkpoints,
            snapshot.step,
            lambda folder: write_files(folder, snapshot, self._run),
            snapshot.keep,
        )

    def _publish_again(self, snapshot: Snapshot) -> None:
        try:
            self._publish(snapshot)
        except (OSError, RuntimeError) as error:
            if self._is_full(error):
                raise self._no_space(snapshot, error) from error
            raise

    def _is_full(self, error: Exception) -> bool:
        return says_disk_full(error) or (
            isinstance(error, RuntimeError) and is_full(self._checkpoints.parent)
        )

    def _no_space(self, snapshot: Snapshot, error: Exception) -> StageError:
        kept = (
            "no checkpoint exists"
            if self.durable is None
            else f"the checkpoint of step {self.durable} is kept"
        )
        return StageError(
            Reason.WORKSPACE_FULL,
            f"the workspace must have {snapshot.bytes / 1e6:.0f} MB for a checkpoint, found no space ({error}); {kept}. "
            "Create the job again with a larger workspace.size.",
        )
