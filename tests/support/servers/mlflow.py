"""MLflow on loopback: a small one for each change, and the real one for a release.

The small one speaks the part of the REST API that the trainer uses, with the answers that MLflow 3.17 gives. The tests run
the same cases against both, and read the result through the same API.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

from tests.support.repository import ROOT
from tests.support.servers.loopback import free_port, http_server, running, status

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts/"
_PROGRAM = ROOT / ".cache" / "servers" / "trackers" / "bin" / "mlflow"

Interference = Callable[[BaseHTTPRequestHandler], bool]


class _RefusedError(Exception):
    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.code, self.name = code, name


@dataclass
class _Run:
    experiment: str
    name: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: set[tuple[str, int, int, float]] = field(default_factory=set)
    status: str = "RUNNING"
    started: int = 0
    ended: int | None = None


class SmallMlflow:
    """The state of the small server. `interfere` may answer in its place: it returns whether it did.

    `proxied` is whether it serves artifacts itself. `requests` lists method and path of each request.
    """

    def __init__(self, *, proxied: bool = True) -> None:
        self.proxied = proxied
        self.experiments: dict[str, str] = {"Default": "0"}
        self.runs: dict[str, _Run] = {}
        self.files: dict[str, bytes] = {}
        self.models: dict[str, list[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.authorizations: set[str | None] = set()
        self.interfere: Interference = lambda _handler: False
        self._lock = threading.Lock()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        self.requests.append(f"{handler.command} {urlsplit(handler.path).path}")
        self.authorizations.add(handler.headers.get("Authorization"))
        if self.interfere(handler):
            return
        with self._lock:
            code, document = self._handle(handler, body)
        status(code, json.dumps(document).encode(), Content_Type="application/json")(handler)

    def _handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, Any]]:
        split = urlsplit(handler.path)
        if split.path.startswith(FILES):
            if handler.command == "PUT":
                self.files[split.path.removeprefix(FILES)] = body
            return 200, {}
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        given = json.loads(body) if body else query
        name = split.path.removeprefix(f"{API}/").replace("/", "_").replace("-", "_")
        try:
            return 200, getattr(self, f"_{name}")(given)
        except _RefusedError as error:
            return error.code, {"error_code": error.name, "message": str(error)}

    def _experiments_get_by_name(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["experiment_name"]
        if name not in self.experiments:
            raise _RefusedError(
                404, "RESOURCE_DOES_NOT_EXIST", f"Could not find experiment with name '{name}'"
            )
        described = {"experiment_id": self.experiments[name], "name": name, "lifecycle_stage": "active"}
        return {"experiment": described}

    def _experiments_create(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["name"] in self.experiments:
            raise _RefusedError(400, "RESOURCE_ALREADY_EXISTS", "Experiment already exists")
        self.experiments[given["name"]] = str(len(self.experiments))
        return {"experiment_id": self.experiments[given["name"]]}

    def _runs_search(self, given: dict[str, Any]) -> dict[str, Any]:
        wanted = re.fullmatch(r"tags\.`([^`]+)` = '([^']*)'", given.get("filter") or "")
        found = [
            self._described(identity)
            for identity, run in self.runs.items()
            if run.experiment in given["experiment_ids"]
            and (wanted is None or run.tags.get(wanted[1]) == wanted[2])
        ]
        return {"runs": found[: given["max_results"]]} if found else {}

    def _runs_create(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = f"{len(self.runs):032x}"
        tags = {each["key"]: each["value"] for each in given.get("tags") or ()}
        self.runs[identity] = _Run(
            given["experiment_id"], given["run_name"], tags, started=given["start_time"]
        )
        return {"run": self._described(identity)}

    def _runs_get(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"run": self._described(given["run_id"])}

    def _runs_log_batch(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[given["run_id"]]
        if sum(len(given.get(kind) or ()) for kind in ("metrics", "params", "tags")) > 1000:
            raise _RefusedError(
                400, "INVALID_PARAMETER_VALUE", "A batch logging request can contain at most 1000"
            )
        for kind in ("params", "tags"):
            if len(given.get(kind) or ()) > 100:
                raise _RefusedError(400, "INVALID_PARAMETER_VALUE", f"at most 100 {kind}")
        for each in given.get("params") or ():
            if run.params.get(each["key"], each["value"]) != each["value"]:
                raise _RefusedError(400, "INVALID_PARAMETER_VALUE", "Changing param values is not allowed.")
            run.params[each["key"]] = each["value"]
        run.tags.update({each["key"]: each["value"] for each in given.get("tags") or ()})
        for each in given.get("metrics") or ():
            run.metrics.add((each["key"], each["step"], each["timestamp"], each["value"]))
        return {}

    def _runs_update(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[given["run_id"]]
        run.status, run.ended = given["status"], given["end_time"]
        return {"run_info": self._described(given["run_id"])["info"]}

    def _metrics_get_history(self, given: dict[str, Any]) -> dict[str, Any]:
        found = sorted(each for each in self.runs[given["run_id"]].metrics if each[0] == given["metric_key"])
        return {
            "metrics": [
                {"key": key, "step": step, "timestamp": time, "value": value}
                for key, step, time, value in found
            ]
        }

    def _registered_models_get(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["name"] not in self.models:
            raise _RefusedError(404, "RESOURCE_DOES_NOT_EXIST", "Registered Model not found")
        return {"registered_model": {"name": given["name"]}}

    def _registered_models_create(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["name"] in self.models:
            raise _RefusedError(400, "RESOURCE_ALREADY_EXISTS", "Registered Model already exists")
        self.models[given["name"]] = []
        return {"registered_model": {"name": given["name"]}}

    def _model_versions_search(self, given: dict[str, Any]) -> dict[str, Any]:
        parts = given["filter"].replace('"', "'").split("'")
        found = [
            each for each in self.models.get(parts[1], ()) if len(parts) < 4 or each["run_id"] == parts[3]
        ]
        return {"model_versions": found} if found else {}

    def _model_versions_create(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["source"].startswith("file:"):
            raise _RefusedError(400, "INVALID_PARAMETER_VALUE", "Invalid model version source")
        versions = self.models[given["name"]]
        made = {**given, "version": str(len(versions) + 1)}
        versions.append(made)
        return {"model_version": made}

    def _described(self, identity: str) -> dict[str, Any]:
        run = self.runs[identity]
        latest: dict[str, tuple[int, int, float]] = {}
        for key, step, time, value in run.metrics:
            latest[key] = max(latest.get(key, (-1, 0, 0.0)), (step, time, value))
        place = f"mlflow-artifacts:/{run.experiment}/{identity}/artifacts"
        return {
            "info": {
                "run_id": identity,
                "experiment_id": run.experiment,
                "run_name": run.name,
                "status": run.status,
                "start_time": run.started,
                "end_time": run.ended,
                "artifact_uri": place if self.proxied else f"s3://store/{identity}/artifacts",
            },
            "data": {
                "tags": [{"key": key, "value": value} for key, value in run.tags.items()],
                "params": [{"key": key, "value": value} for key, value in run.params.items()],
                "metrics": [
                    {"key": key, "step": step, "timestamp": time, "value": value}
                    for key, (step, time, value) in latest.items()
                ],
            },
        }


@contextmanager
def small_mlflow(state: SmallMlflow | None = None) -> Iterator[str]:
    """Run the small server; yields its address."""
    with http_server(SmallMlflow() if state is None else state, host="127.0.0.1") as address:
        yield address


@contextmanager
def real_mlflow(folder: Path) -> Iterator[str]:
    """Run MLflow with a new database and its own store of artifacts in `folder`; yields its address.

    `make model-servers` installs it.
    """
    port = free_port()
    command = [str(_PROGRAM), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/files",
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with running(command, port, quiet, seconds=120):
        yield f"http://127.0.0.1:{port}"


def call(address: str, path: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a request to the API as any other client would."""
    data = None if document is None else json.dumps(document).encode()
    host = address.removeprefix("http://")
    fields = {"Content-Type": "application/json"}
    with urlopen(Request(f"http://{host}{API}/{path}", data=data, headers=fields)) as response:
        found: dict[str, Any] = json.load(response)
    return found
