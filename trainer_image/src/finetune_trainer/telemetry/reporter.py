"""Progress of a stage: `/progress` and `/metrics` over HTTP, `progress.json`, and lines or a bar for people.

Telemetry may never end a run: a port in use costs one log line, a full disk another.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from tqdm import tqdm

from finetune_trainer.contract.run_spec import CONTRACT_VERSION
from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

PORTS_TRIED = 10
_FILE_INTERVAL_SECONDS = 1.0
_LINE_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True)
class Identity:
    """Whose progress this is."""

    uid: str
    stage: str
    attempt: int


@dataclass(frozen=True)
class _Snapshot:
    """One update, with the moment at which its activity began."""

    activity: str
    step: int
    total: int | None
    loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    heartbeat: datetime
    activity_started: datetime
    first_step: int

    def estimated_completion(self) -> datetime | None:
        """End of the activity if it goes on at its mean speed so far; None while unknown."""
        done = self.step - self.first_step
        if self.total is None or done <= 0 or self.step > self.total:
            return None
        elapsed = (self.heartbeat - self.activity_started).total_seconds()
        return self.heartbeat + timedelta(seconds=elapsed / done * (self.total - self.step))


class Reporter:
    """Takes progress from a stage and shows it wherever someone may look.

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
        self.port: int | None = None
        self._started = utc_now()
        self._progress_path = progress_path
        self._stream = sys.stderr if stream is None else stream
        self._changed = threading.Condition()
        self._dirty = True
        self._closed = False
        self._file_failed = False
        self._last_line = -math.inf
        self._last_activity = ""
        self._bar_open = False
        self._config: dict[str, Any] | None = None
        self._snapshot = _Snapshot(
            "Starting", 0, None, None, None, None, None, self._started, self._started, 0
        )
        self._server = self._serve(host, port) if port is not None else None
        self._writer = threading.Thread(target=self._write_changes, name="telemetry", daemon=True)
        self._writer.start()

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
            self._snapshot = _Snapshot(
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

    def tell_config(self, config: dict[str, Any]) -> None:
        """Show the base model's config (`model_config.told_config`) from now on in every document."""
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
            self._server.shutdown()
            self._server.server_close()

    def _serve(self, host: str, first_port: int) -> _Server | None:
        for port in range(first_port, first_port + PORTS_TRIED):
            try:
                server = _Server(host, port, self)
            except OSError as error:
                _log.warning("telemetry: port %d cannot be used (%s)", port, error.strerror or error)
                continue
            self.port = port
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="telemetry-http", daemon=True
            ).start()
            _log.info("telemetry: serving /progress and /metrics on port %d", port)
            return server
        last_port = first_port + PORTS_TRIED - 1
        _log.warning("telemetry: no port of %d to %d is free; the run goes on without", first_port, last_port)
        return None

    def _write_changes(self) -> None:
        while True:
            with self._changed:
                if not self._closed:
                    self._changed.wait(timeout=_FILE_INTERVAL_SECONDS)
                dirty, closed = self._dirty, self._closed
                self._dirty = False
            if dirty:
                self._write_file()
                self._show(last=closed)
            if closed:
                self._end_bar()
                return

    def _write_file(self) -> None:
        if self._progress_path is None:
            return
        try:
            write_json_atomically(self._progress_path, self.document())
        except OSError as error:
            if not self._file_failed:
                _log.warning(
                    "telemetry: progress file cannot be written (%s); the run goes on", error.strerror
                )
            self._file_failed = True

    def _show(self, *, last: bool) -> None:
        snapshot = self._snapshot
        if self._stream.isatty():
            if snapshot.activity != self._last_activity:
                self._end_bar()
            self._stream.write("\r" + _bar(self.identity.stage, snapshot) + "\x1b[K")
            self._stream.flush()
            self._bar_open = True
        else:
            now = time.monotonic()
            changed = snapshot.activity != self._last_activity
            if not (changed or last or now - self._last_line >= _LINE_INTERVAL_SECONDS):
                return
            self._last_line = now
            _log.info("%s", _line(self.identity.stage, snapshot))
        self._last_activity = snapshot.activity

    def _end_bar(self) -> None:
        if self._bar_open:
            self._stream.write("\n")
            self._stream.flush()
            self._bar_open = False


class NullReporter(Reporter):
    """Reports to nobody: for tests and for use as a library."""

    def __init__(self) -> None:
        self.identity = Identity(uid="", stage="Prepare", attempt=0)
        self.port = None

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

    def tell_config(self, config: dict[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Metrics(Collector):
    """Gauges computed from the current progress at the moment of a scrape."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one gauge per known number."""
        document = self._reporter.document()
        labels = ["stage", "activity"]
        values = [str(document["stage"]), str(document["activity"])]
        gauges = [
            ("step", "Units of the activity done.", document["step"]),
            ("total_steps", "Units of the activity in all.", document["totalSteps"]),
            ("loss", "Training loss, nats per supervised token.", document["loss"]),
            ("learning_rate", "Learning rate of the last step.", document["learningRate"]),
            ("tokens_per_second", "Tokens processed per second.", document["tokensPerSecond"]),
            ("peak_memory_bytes", "Largest device memory allocated so far.", document["peakMemoryBytes"]),
            (
                "heartbeat_timestamp_seconds",
                "Unix time of the last sign of progress.",
                datetime.fromisoformat(document["heartbeatTime"]).timestamp(),
            ),
        ]
        for name, text, value in gauges:
            if value is None:
                continue
            gauge = GaugeMetricFamily(f"finetune_trainer_{name}", text, labels=labels)
            gauge.add_metric(values, float(value))
            yield gauge


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /progress and GET /metrics."""

    server: _Server
    timeout: ClassVar[float] = 5.0

    def do_GET(self) -> None:
        """Serve the two documents."""
        path = self.path.partition("?")[0]
        if path == "/progress":
            self._answer("application/json", json.dumps(self.server.reporter.document()).encode())
        elif path == "/metrics":
            self._answer(CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        else:
            self.send_error(404, explain="paths are /progress and /metrics")

    def _answer(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class dictates the name
        """Keep scrapes out of the log."""


class _Server(ThreadingHTTPServer):
    """HTTP server that knows its reporter."""

    daemon_threads = True

    def __init__(self, host: str, port: int, reporter: Reporter) -> None:
        if ":" in host:
            self.address_family = AF_INET6
        self.reporter = reporter
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Metrics(reporter))
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's name, which can hang on DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a client that went away; it is no concern of the run."""
        _log.debug("telemetry: %s from %s failed", request, client_address, exc_info=True)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _details(snapshot: _Snapshot) -> list[str]:
    details = []
    if snapshot.loss is not None:
        details.append(f"loss {snapshot.loss:.4f}")
    if snapshot.tokens_per_second is not None:
        details.append(f"{snapshot.tokens_per_second:.0f} tokens/s")
    return details


def _bar(stage: str, snapshot: _Snapshot) -> str:
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


def _line(stage: str, snapshot: _Snapshot) -> str:
    steps = str(snapshot.step) if snapshot.total is None else f"{snapshot.step} of {snapshot.total}"
    return ", ".join([f"{stage} {snapshot.activity}: {steps}", *_details(snapshot)])
