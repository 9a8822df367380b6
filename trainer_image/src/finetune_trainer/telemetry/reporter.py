"""Progress of a stage: over HTTP, in `progress.json`, and as lines or a bar for people.

Telemetry never ends a run: a port in use costs one log line, a full disk another.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO

from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.run_spec import CONTRACT_VERSION
from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.telemetry.console import Console
from finetune_trainer.telemetry.server import start_server
from finetune_trainer.telemetry.snapshot import Snapshot
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

_FILE_INTERVAL_SECONDS = 1.0


class Reporter:
    """Takes progress from a stage and publishes it.

    `update` is cheap, safe from any thread, and never raises. `progress_path` None writes no file; `port`
    None serves nothing.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        progress_path: Path | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.identity = identity
        self._started = utc_now()
        self._progress_path = progress_path
        self._console = Console(identity.stage, sys.stderr if stream is None else stream)
        self._changed = threading.Condition()
        self._dirty = True
        self._closed = False
        self._file_failed = False
        self._config: dict[str, Any] | None = None
        self._snapshot = Snapshot(
            "Starting", 0, None, None, None, None, None, self._started, self._started, 0
        )
        self._server = start_server(host, port, self.document) if port is not None else None
        self._writer = threading.Thread(target=self._write_changes, name="telemetry", daemon=True)
        self._writer.start()

    @property
    def port(self) -> int | None:
        """Port that serves the progress; None if nothing is served."""
        return None if self._server is None else self._server.server_port

    def update(
        self,
        activity: str,
        step: int,
        total: int | None,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        tokens_per_second: float | None = None,
        peak_memory_bytes: int | None = None,
    ) -> None:
        """Record that `activity` (one of progress.schema.json) has done `step` of `total` units.

        Numbers that are not finite are shown as unknown.
        """
        now = utc_now()
        with self._changed:
            last = self._snapshot
            same = last.activity == activity
            self._snapshot = Snapshot(
                activity=activity,
                step=step,
                total=total,
                loss=_finite(loss),
                learning_rate=_finite(learning_rate),
                tokens_per_second=_finite(tokens_per_second),
                peak_memory_bytes=peak_memory_bytes,
                heartbeat=now,
                activity_started=last.activity_started if same else now,
                first_step=last.first_step if same else step,
            )
            self._dirty = True
            if not same:
                self._changed.notify()

    def report_config(self, config: dict[str, Any]) -> None:
        """Add the base model's config (`model_config.select_config_fields`) to every document from now on."""
        with self._changed:
            self._config = config
            self._dirty = True
            self._changed.notify()

    def document(self) -> dict[str, Any]:
        """Return the progress document of contract/progress.schema.json."""
        snapshot, config = self._snapshot, self._config
        completion = snapshot.estimated_completion()
        return {
            "version": CONTRACT_VERSION,
            "uid": self.identity.uid,
            "stage": self.identity.stage,
            "attempt": self.identity.attempt,
            "activity": snapshot.activity,
            "step": snapshot.step,
            "totalSteps": snapshot.total,
            "loss": snapshot.loss,
            "learningRate": snapshot.learning_rate,
            "tokensPerSecond": snapshot.tokens_per_second,
            "peakMemoryBytes": snapshot.peak_memory_bytes,
            "startTime": rfc3339(self._started),
            "heartbeatTime": rfc3339(snapshot.heartbeat),
            "estimatedCompletionTime": None if completion is None else rfc3339(completion),
            **({} if config is None else {"config": config}),
        }

    def close(self) -> None:
        """Write the last state and stop serving."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._writer.join(timeout=5)
        if self._server is not None:
            self._server.close()

    def _write_changes(self) -> None:
        while True:
            with self._changed:
                if not self._closed:
                    self._changed.wait(timeout=_FILE_INTERVAL_SECONDS)
                dirty, closed = self._dirty, self._closed
                self._dirty = False
            if dirty:
                self._write_file()
                self._console.show(self._snapshot, last=closed)
            if closed:
                self._console.end_bar()
                return

    def _write_file(self) -> None:
        if self._progress_path is None:
            return
        try:
            write_json_atomically(self._progress_path, self.document())
        except OSError as error:
            if not self._file_failed:
                _log.warning(
                    "telemetry: progress file cannot be written (%s); the run continues", error.strerror
                )
            self._file_failed = True


class NullReporter(Reporter):
    """Publishes nothing: for tests and for use as a library."""

    def __init__(self) -> None:
        self.identity = Identity(uid="", stage="Prepare", attempt=0)
        self._server = None

    def update(
        self,
        activity: str,
        step: int,
        total: int | None,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        tokens_per_second: float | None = None,
        peak_memory_bytes: int | None = None,
    ) -> None:
        """Do nothing."""

    def report_config(self, config: dict[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
