"""The current progress over HTTP: `/progress` as JSON and `/metrics` for Prometheus."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from socketserver import TCPServer
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)

PORTS_TRIED = 10

Document = Callable[[], dict[str, Any]]
"""Returns the current progress document of contract/progress.schema.json; called from several threads."""


class TelemetryServer(ThreadingHTTPServer):
    """HTTP server of one progress document. Raises OSError if `port` cannot be used."""

    daemon_threads = True

    def __init__(self, host: str, port: int, document: Document) -> None:
        if ":" in host:
            self.address_family = AF_INET6
        self.document = document
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Metrics(document))
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's name, which can hang on DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a client that disconnected at debug level: it does not affect the run."""
        _log.debug("telemetry: %s from %s failed", request, client_address, exc_info=True)

    def close(self) -> None:
        """Stop serving and release the port."""
        self.shutdown()
        self.server_close()


def start_server(host: str, first_port: int, document: Document) -> TelemetryServer | None:
    """Serve `document` on the first free port of ten, in a thread; None if all ten are taken.

    Each port that cannot be used costs one log line: telemetry never ends a run.
    """
    for port in range(first_port, first_port + PORTS_TRIED):
        try:
            server = TelemetryServer(host, port, document)
        except OSError as error:
            _log.warning("telemetry: port %d cannot be used (%s)", port, error.strerror or error)
            continue
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="telemetry-http", daemon=True
        ).start()
        _log.info("telemetry: serving /progress and /metrics on port %d", port)
        return server
    last_port = first_port + PORTS_TRIED - 1
    _log.warning(
        "telemetry: no port of %d to %d is free; the run continues without telemetry", first_port, last_port
    )
    return None


class _Metrics(Collector):
    """Computes gauges from the current progress when Prometheus scrapes."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one gauge for each number that is known."""
        document = self._document()
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
    """Serves GET /progress and GET /metrics."""

    server: TelemetryServer
    timeout: ClassVar[float] = 5.0

    def do_GET(self) -> None:
        """Send the document that the path names, or status 404."""
        path = self.path.partition("?")[0]
        if path == "/progress":
            self._respond("application/json", json.dumps(self.server.document()).encode())
        elif path == "/metrics":
            self._respond(CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        else:
            self.send_error(404, explain="paths are /progress and /metrics")

    def _respond(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class dictates the name
        """Keep scrapes out of the log."""
