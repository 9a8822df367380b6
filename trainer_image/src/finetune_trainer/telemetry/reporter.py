"""Progress of a stage: over HTTP, in `progress.json`, and as lines or a bar for people.

Telemetry never ends or slows a run. Everything that can hang or fail happens in threads of its own: the disk, the
network and the terminal. Each kind of trouble costs few log lines, and what can work again later does.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.run_spec import CONTRACT_VERSION
from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.telemetry.background import BackgroundTask
from finetune_trainer.telemetry.console import Console
from finetune_trainer.telemetry.server import TelemetryServer
from finetune_trainer.telemetry.snapshot import Snapshot
from finetune_trainer.telemetry.training import TrainingMeasurements
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.memory_trace import MemoryTrace

_log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_CLOSING_SECONDS = 2.0
"""Time that a hanging disk or terminal can take from the end of a stage."""


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
        self._changed = threading.Lock()
        self._closed = False
        self._file_failed = False
        self._config: dict[str, Any] | None = None
        self._trace: dict[str, Any] | None = None
        self._training: TrainingMeasurements | None = None
        self._snapshot = Snapshot(
            "Starting", 0, None, None, None, None, None, None, self._started, self._started, 0
        )
        self._server = TelemetryServer(host, port, self.document) if port is not None else None
        self._file = BackgroundTask("telemetry-file", self._write_file, _INTERVAL_SECONDS)
        self._screen = BackgroundTask("telemetry", self._show, _INTERVAL_SECONDS)
        self._next_check = 0.0
        self._request(urgent=False)

    @property
    def port(self) -> int | None:
        """Port that serves the progress; None if nothing is served."""
        return None if self._server is None else self._server.port

    def update(
        self,
        activity: str,
        step: int,
        total: int | None,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        gradient_norm: float | None = None,
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
                gradient_norm=_finite(gradient_norm),
                tokens_per_second=_finite(tokens_per_second),
                peak_memory_bytes=peak_memory_bytes,
                heartbeat=now,
                activity_started=last.activity_started if same else now,
                first_step=last.first_step if same else step,
            )
        self._request(urgent=not same)

    def report_config(self, config: dict[str, Any]) -> None:
        """Add the base model's config (`model_config.select_config_fields`) to every document from now on."""
        with self._changed:
            self._config = config
        self._request(urgent=True)

    def report_trace(self, trace: MemoryTrace | None) -> None:
        """Add the traced memory of the model, if there is one, to every document from now on."""
        with self._changed:
            self._trace = None if trace is None else trace.document()
        self._request(urgent=True)

    def measure(self, **numbers: Any) -> None:
        """Add or replace numbers of `TrainingMeasurements` in every document from now on."""
        with self._changed:
            self._training = replace(self._training or TrainingMeasurements(), **numbers)

    def document(self) -> dict[str, Any]:
        """Return the progress document of contract/progress.schema.json."""
        snapshot, config, training = self._snapshot, self._config, self._training
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
            "gradientNorm": snapshot.gradient_norm,
            "tokensPerSecond": snapshot.tokens_per_second,
            "peakMemoryBytes": snapshot.peak_memory_bytes,
            "startTime": rfc3339(self._started),
            "heartbeatTime": rfc3339(snapshot.heartbeat),
            "estimatedCompletionTime": None if completion is None else rfc3339(completion),
            **({} if training is None else {"training": training.document()}),
            **({} if config is None else {"config": config}),
            **({} if self._trace is None else {"trace": self._trace}),
        }

    def close(self) -> None:
        """Write the last state and stop serving."""
        self._closed = True
        self._request(urgent=True)
        for task in (self._file, self._screen):
            task.close(_CLOSING_SECONDS)
        if self._server is not None:
            self._server.close()

    def _request(self, *, urgent: bool) -> None:
        """Let file and terminal show the state, and once a second restart threads that have ended."""
        self._file.request(urgent=urgent)
        self._screen.request(urgent=urgent)
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _INTERVAL_SECONDS
        for part in (self._file, self._screen, self._server):
            if part is not None:
                part.supervise()

    def _show(self) -> None:
        self._console.show(self._snapshot, last=self._closed)
        if self._closed:
            self._console.end_bar()

    def _write_file(self) -> None:
        if self._progress_path is None:
            return
        try:
            write_json_atomically(self._progress_path, self.document())
        except OSError as error:
            if not self._file_failed:
                _log.warning(
                    "telemetry: progress file cannot be written (%s); the run continues",
                    error.strerror or error,
                )
            self._file_failed = True
        else:
            if self._file_failed:
                _log.info("telemetry: the progress file is written again")
            self._file_failed = False


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
        gradient_norm: float | None = None,
        tokens_per_second: float | None = None,
        peak_memory_bytes: int | None = None,
    ) -> None:
        """Do nothing."""

    def report_config(self, config: dict[str, Any]) -> None:
        """Do nothing."""

    def report_trace(self, trace: MemoryTrace | None) -> None:
        """Do nothing."""

    def measure(self, **numbers: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _finite(value: Any) -> float | None:
    """Return a number that JSON has; None for any other value, such as NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
