"""Progress for people: a bar on a terminal, log lines anywhere else."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from finetune_trainer.telemetry.snapshot import Snapshot

_log = logging.getLogger(__name__)

_LINE_INTERVAL_SECONDS = 5.0


class Console:
    """Shows the snapshots of one stage. A stream that is no terminal gets at most one line in five seconds."""

    def __init__(self, stage: str, stream: TextIO) -> None:
        self._stage = stage
        self._stream = stream
        self._last_line = -math.inf
        self._last_activity = ""
        self._bar_open = False

    def show(self, snapshot: Snapshot, *, last: bool) -> None:
        """Show one snapshot. A new activity and the last snapshot always get their line."""
        if self._stream.isatty():
            if snapshot.activity != self._last_activity:
                self.end_bar()
            self._stream.write("\r" + progress_bar(self._stage, snapshot) + "\x1b[K")
            self._stream.flush()
            self._bar_open = True
        else:
            now = time.monotonic()
            changed = snapshot.activity != self._last_activity
            if not (changed or last or now - self._last_line >= _LINE_INTERVAL_SECONDS):
                return
            self._last_line = now
            _log.info("%s", progress_line(self._stage, snapshot))
        self._last_activity = snapshot.activity

    def end_bar(self) -> None:
        """End the bar's line if one is open, so that other output starts on its own line."""
        if self._bar_open:
            self._stream.write("\n")
            self._stream.flush()
            self._bar_open = False


def progress_bar(stage: str, snapshot: Snapshot) -> str:
    """Return a bar of at most 100 columns, with the speed and the time left."""
    elapsed = (snapshot.heartbeat - snapshot.activity_started).total_seconds()
    return str(
        tqdm.format_meter(
            snapshot.step,
            snapshot.total,
            elapsed,
            ncols=100,
            prefix=f"{stage} {snapshot.activity}",
            unit="",
            unit_scale=True,
            initial=snapshot.first_step,
            postfix=", ".join(_details(snapshot)),
        )
    )


def progress_line(stage: str, snapshot: Snapshot) -> str:
    """Return one log line: stage, activity, steps and the measurements that are known."""
    steps = str(snapshot.step) if snapshot.total is None else f"{snapshot.step} of {snapshot.total}"
    return ", ".join([f"{stage} {snapshot.activity}: {steps}", *_details(snapshot)])


def _details(snapshot: Snapshot) -> list[str]:
    details = []
    if snapshot.loss is not None:
        details.append(f"loss {snapshot.loss:.4f}")
    if snapshot.tokens_per_second is not None:
        details.append(f"{snapshot.tokens_per_second:.0f} tokens/s")
    return details
