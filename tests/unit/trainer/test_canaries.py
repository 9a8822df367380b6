"""A whole run, and one that fails in each way, with a canary in every credential, URL, header and environment variable.

All stages run in one process, which has all secrets at once. In a cluster, each container has its own
(tests/e2e/test_secrets.py).
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

import pytest

from tests.support.servers.forward_proxy import ForwardProxy, proxying
from tests.support.servers.loopback import free_port, http_server, s3_server, status
from tests.support.servers.mlflow import SmallMlflow, call, small_mlflow
from tests.support.servers.model_hub import REPOSITORY, ModelHub
from tests.support.servers.model_hub import serving as serving_hub
from tests.support.tiny_models import conversation_rows
from tests.support.traces import Traces

pytestmark = pytest.mark.object_stores

QUERY = "query of the dataset's URL"
CANARIES = {
    "hub token": "hf_canary0123456789abcdef",
    "path of the dataset's URL": "canary-path-56f0b1c2d3",
    QUERY: "canary/query+signature=",
    "password of the proxy": "canary-proxy-9z8y7x",
    "password of the tracker": "canary-tracker-5t4r3e",
    "own key": "canary-own-key-2w1q0p",
    "own variable": "canary-own-variable-7m6n5b",
}
S3_KEY, S3_SECRET = "AKIATESTTESTTEST", "test/secret+key=0123456789"  # those of the loopback server
SECONDS = 240


@dataclass
class Scene:
    """The servers of a run, its environment and its run spec."""

    document: dict[str, Any]
    environment: dict[str, str]
    mlflow: SmallMlflow
    tracker: str
    buckets: Path
    proxy: ForwardProxy
    tokens: set[str | None] = field(default_factory=set)
    """The Authorization headers that the hub has seen."""


@contextmanager
def scene(run_document: dict[str, Any], tiny_model: Path, folder: Path) -> Iterator[Scene]:
    """Run a hub, a server of rows behind a proxy, a store and a tracker; each wants its own canary."""
    tokens: set[str | None] = set()
    rows = "\n".join(json.dumps(row) for row in conversation_rows(20)).encode()

    class Hub(ModelHub):
        def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
            tokens.add(handler.headers.get("Authorization"))
            super().answer(handler, body=body)

    user = f"proxy-user:{CANARIES['password of the proxy']}"
    proxy = ForwardProxy(authorization="Basic " + base64.b64encode(user.encode()).decode())
    mlflow = SmallMlflow()
    with ExitStack() as stack:
        hub = stack.enter_context(serving_hub(Hub(tiny_model)))
        data = stack.enter_context(http_server(status(200, rows), host="127.0.0.1"))
        tracker = stack.enter_context(small_mlflow(mlflow))
        store = stack.enter_context(s3_server(folder / "buckets"))
        through = stack.enter_context(proxying(proxy))
        (folder / "buckets" / "models").mkdir()
        direct = ",".join(urlsplit(each).netloc for each in (hub, tracker, store))
        environment = {
            "HF_ENDPOINT": hub,
            "FINETUNE_MODEL_TOKEN": CANARIES["hub token"],
            "FINETUNE_DATASET_URL": _dataset_url(data),
            "HTTP_PROXY": through.replace("://", f"://{user}@"),
            "NO_PROXY": direct,
            "FINETUNE_DESTINATION_BUCKET_AWS_ACCESS_KEY_ID": S3_KEY,
            "FINETUNE_DESTINATION_BUCKET_AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "FINETUNE_DESTINATION_BUCKET_AWS_REGION": "us-east-1",
            "FINETUNE_MLFLOW_MLFLOW_TRACKING_USERNAME": "team",
            "FINETUNE_MLFLOW_MLFLOW_TRACKING_PASSWORD": CANARIES["password of the tracker"],
            "COMPANY_API_KEY": CANARIES["own key"],
            "DEPLOY_TOKEN": CANARIES["own variable"],
        }
        source = {
            "kind": "HuggingFace",
            "repository": REPOSITORY,
            "revision": "main",
            "tokenVariable": "FINETUNE_MODEL_TOKEN",
        }
        bucket = {
            "name": "bucket", "kind": "ObjectStore", "uri": "s3://models/team/bot", "endpoint": store,
            "credentialsPrefix": "FINETUNE_DESTINATION_BUCKET_",
        }  # fmt: skip
        document = {
            **run_document,
            "version": "1.9",
            "model": {**run_document["model"], "source": source},
            "dataset": {
                **run_document["dataset"],
                "source": {"kind": "Url", "urlVariable": "FINETUNE_DATASET_URL"},
            },
            "output": {**run_document["output"], "destinations": [bucket]},
            "tracking": {
                "mlflow": {"uri": tracker, "experiment": "team", "credentialsPrefix": "FINETUNE_MLFLOW_"}
            },
            "telemetry": {"port": free_port(), "host": "127.0.0.1"},
            "limits": {**run_document["limits"], "allowPrivateAddresses": True, "retrySeconds": 0},
        }
        yield Scene(document, environment, mlflow, tracker, folder / "buckets", proxy, tokens)


def _dataset_url(origin: str) -> str:
    """A URL with a canary in its path and in its query, which is percent-encoded as stores do it."""
    path = CANARIES["path of the dataset's URL"]
    return f"{origin}/{path}/rows.jsonl?X-Signature={quote(CANARIES[QUERY], safe='')}"


def run(scene: Scene, folder: Path, traces: Traces) -> int:
    """Run all stages as a process, poll its telemetry meanwhile, and collect what others could read; returns the exit code."""
    spec = folder / "run.json"
    spec.write_text(json.dumps(scene.document))
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH", "HOME"}}
    environment = {**kept, "OMP_NUM_THREADS": "1", **scene.environment}
    ended = threading.Event()
    poller = threading.Thread(target=_poll, args=(scene.document["telemetry"]["port"], traces, ended))
    poller.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "finetune_trainer", "run", "--run", str(spec)],
            env=environment, capture_output=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    finally:
        ended.set()
        poller.join()
    traces.add("standard output", done.stdout)
    traces.add("standard error", done.stderr)
    traces.add_folder("workspace", Path(scene.document["workspace"]["path"]))
    traces.add_folder("artifacts", Path(scene.document["output"]["destination"]["path"]))
    traces.add_folder("bucket", scene.buckets)
    for identity, content in scene.mlflow.files.items():
        traces.add(f"tracker: {identity}", content)
    for identity in scene.mlflow.runs:
        traces.add(f"tracker: run {identity}", json.dumps(call(scene.tracker, f"runs/get?run_id={identity}")))
    return done.returncode


def _poll(port: int, traces: Traces, ended: threading.Event) -> None:
    """Read metrics and progress until the run ends, as Prometheus and the operator do."""
    while not ended.wait(0.2):
        for path in ("metrics", "progress"):
            try:
                with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as answer:
                    traces.extend(path, answer.read())
            except OSError:
                continue


def leaks(scene: Scene, traces: Traces) -> list[tuple[str, list[str]]]:
    """The secrets that show, with the places."""
    secrets = {
        **CANARIES,
        "keys of the store": S3_SECRET,
        "whole URL": scene.environment["FINETUNE_DATASET_URL"],
    }
    return [(name, found) for name, secret in secrets.items() if (found := traces.places_of(secret))]


def test_a_whole_run_shows_no_secret_to_anybody(
    run_document: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    traces = Traces()
    with scene(run_document, tiny_model, tmp_path) as given:
        code = run(given, tmp_path, traces)
        assert code == 0, traces.texts["standard error"].decode()
        assert given.tokens == {f"Bearer {CANARIES['hub token']}"}
        assert given.proxy.lines, "the rows must come through the proxy"
        basic = base64.b64encode(f"team:{CANARIES['password of the tracker']}".encode()).decode()
        assert f"Basic {basic}" in given.mlflow.authorizations
        assert leaks(given, traces) == []
    kinds = {place.partition(":")[0] for place in traces.texts}
    assert kinds == {
        "standard output", "standard error", "metrics", "progress", "workspace", "artifacts", "bucket", "tracker",
    }  # fmt: skip
    for name in ("manifest.json", "index.html", "job.json", "prepare-0.log", "publish-0.log"):
        assert any(place.endswith(name) for place in traces.texts), name
    # A search that finds nothing proves nothing unless it finds what is there.
    assert traces.places_of(REPOSITORY)


BROKEN = {
    "a hub that refuses": ("HF_ENDPOINT", "http://127.0.0.1:9/"),
    "rows that are gone": ("FINETUNE_DATASET_URL", None),
    "a proxy that refuses": ("HTTP_PROXY", None),
    "a store that refuses": ("FINETUNE_DESTINATION_BUCKET_AWS_ACCESS_KEY_ID", "AKIAWRONGWRONGWRONG0"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_run_that_fails_shows_no_secret_in_its_error(
    run_document: dict[str, Any], tiny_model: Path, tmp_path: Path, broken: str
) -> None:
    traces = Traces()
    with scene(run_document, tiny_model, tmp_path) as given:
        name, value = BROKEN[broken]
        if name == "FINETUNE_DATASET_URL":
            value = given.environment[name].replace("http://127.0.0.1", "http://gone.invalid")
        elif name == "HTTP_PROXY":
            given.proxy.authorization = "Basic another"
        if value is not None:
            given.environment[name] = value
        assert run(given, tmp_path, traces) != 0
        assert leaks(given, traces) == []
    assert b'"outcome": "Failed"' in traces.texts["standard output"]
