"""Triggers and templates of Argo CD Notifications, as Argo CD's own engine runs them on jobs whose health it judged."""

from __future__ import annotations

import json
import os
import subprocess
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml

from tests.support.chart import only, render
from tests.support.e2e import argo_cd
from tests.support.repository import ROOT
from tests.support.servers.loopback import http_server

# The engine is a part of Argo CD, which only `make test-full` builds.
pytestmark = pytest.mark.full

TESTDATA = ROOT / "gitops/argocd/resource_customizations/finetune.dev/FineTuneJob/testdata"
HOSTILE = 'row 3 has <!channel> & <http://example.com|"help">'
STATES = ("failed", "stalled", "succeeded")
OF_STATE = {"failed": "failed", "stalled": "does_not_fit", "succeeded": "succeeded_priced"}
RUNNING = ("new", "training", "queued", "suspended")
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none", "namespace": "argocd"}}],
    "users": [{"name": "none", "user": {}}],
    "current-context": "none",
}


def job(name: str, message: str | None = None) -> dict[str, Any]:
    """A job of Argo CD's tests; `message` replaces that of its conditions."""
    found: dict[str, Any] = yaml.safe_load((TESTDATA / f"{name}.yaml").read_text())
    for entry in found["status"]["conditions"] if message else ():
        entry["message"] = message
    return found


class Engine:
    """Argo CD's engine on the chart's ConfigMap. `folder` holds its files."""

    def __init__(self, folder: Path, services: dict[str, Any] | None = None) -> None:
        self._folder = folder
        objects = render(
            "--set=argocdNotifications.enabled=true",
            f"--set-json=argocdNotifications.services={json.dumps(services or {})}",
        )
        body = only(objects, "ConfigMap", "argocd-notifications-cm")
        self._write("config", {**body, "metadata": {"name": body["metadata"]["name"]}})
        self._write("kubeconfig", KUBECONFIG)

    def application(self, jobs: list[dict[str, Any]], *, persists_health: bool = True) -> Path:
        """An application of these jobs, with the health that Argo CD judges them to have."""
        resources: list[dict[str, Any]] = [{"version": "v1", "kind": "ConfigMap", "name": "rows"}]
        for index, each in enumerate(jobs):
            printed = argo_cd.evaluate("health", each, self._folder)
            status, _, message = printed.partition("MESSAGE:")
            health = {"status": status.partition("STATUS:")[2].strip(), "message": message.strip()}
            resources.append(
                {
                    "group": "finetune.dev",
                    "version": "v1alpha1",
                    "kind": "FineTuneJob",
                    "namespace": "team-a",
                    "name": f"job-{index}",
                    **({"health": health} if persists_health else {}),
                }
            )
        metadata = {"name": "tuning", "namespace": "argocd"}
        application = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": metadata}
        return self._write("application", {**application, "spec": {}, "status": {"resources": resources}})

    def triggered(self, application: Path, state: str) -> bool:
        """Whether the trigger of this state fires."""
        printed = self._run("trigger", "run", f"finetune-{state}", str(application))
        (line,) = [line for line in printed.splitlines() if line.startswith("any(")]
        return line.split()[-1] == "true"

    def send(self, application: Path, state: str, recipient: str = "console:stdout") -> str:
        """Send the notification of this state; returns what the engine prints."""
        return self._run(
            "template", "notify", f"finetune-{state}", str(application), "--recipient", recipient
        )

    def notification(self, application: Path, state: str) -> dict[str, Any]:
        """The notification of this state with the parts of all services, as the engine prints it."""
        found: dict[str, Any] = yaml.safe_load(self.send(application, state))
        return found

    def _run(self, *arguments: str) -> str:
        files = {"config-map": "config", "kubeconfig": "kubeconfig"}
        options = [f"--{option}={self._folder / name}.yaml" for option, name in files.items()]
        command = [str(argo_cd.PROGRAM), "admin", "notifications", *arguments, "--secret=:empty", *options]
        environment = os.environ | {"ARGOCD_BINARY_NAME": "argocd"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _write(self, name: str, body: dict[str, Any]) -> Path:
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(body))
        return path


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@pytest.mark.parametrize("state", STATES)
def test_each_trigger_fires_for_its_state_alone(engine: Engine, state: str) -> None:
    own = engine.application([*(job(name) for name in RUNNING), job(OF_STATE[state])])
    assert {each: engine.triggered(own, each) for each in STATES} == {each: each == state for each in STATES}


def test_no_trigger_fires_without_the_health_of_resources(engine: Engine) -> None:
    jobs = [job(name) for name in OF_STATE.values()]
    application = engine.application(jobs, persists_health=False)
    assert not any(engine.triggered(application, state) for state in STATES)


def test_a_failure_names_its_reason_and_its_remedy_for_every_failed_job(engine: Engine) -> None:
    application = engine.application([job("failed"), job("succeeded"), job("failed", "use UTF-8")])
    found = engine.notification(application, "failed")
    assert "team-a/job-0 has failed.\nDatasetInvalid: Row 3 must have messages\n" in found["message"]
    assert "team-a/job-2 has failed.\nDatasetInvalid: use UTF-8\n" in found["message"]
    assert "job-1" not in str(found)
    assert found["email"]["subject"] == "FineTuneJobs of tuning have failed"
    body = json.loads(found["webhook"]["finetune"]["body"])
    assert (body["event"], body["application"]) == ("failed", "tuning")
    assert body["jobs"][1] == {
        "namespace": "team-a",
        "name": "job-2",
        "message": "DatasetInvalid: use UTF-8",
    }


def test_a_success_tells_the_cost_and_the_place_of_the_report(engine: Engine) -> None:
    found = engine.notification(engine.application([job("succeeded_priced")]), "succeeded")
    assert (
        "cost 3.42 EUR; report with the artifacts at pvc://team-a/artifacts/support-bot" in found["message"]
    )
    assert "finetune report --namespace team-a job-0" in found["message"]


def test_a_stalled_job_says_what_would_let_it_go_on(engine: Engine) -> None:
    found = engine.notification(engine.application([job("does_not_fit"), job("failed")]), "stalled")
    assert "Stalled: DoesNotFit: No GPU has enough memory" in found["message"]
    assert "job-1" not in str(found)


def test_a_message_cannot_mention_people_or_break_the_json(tmp_path: Path) -> None:
    received: list[tuple[str, str]] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0))).decode()
        received.append((request.path, body))
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        request.wfile.write(b'{"ok": true, "channel": "C1", "ts": "1.2", "channels": []}')

    with http_server(answer, host="127.0.0.1") as origin:
        services = {
            "slack": {"token": "none", "apiURL": f"{origin}/api/"},
            "webhook.finetune": {"url": f"{origin}/hook"},
        }
        engine = Engine(tmp_path, services)
        application = engine.application([job("failed", HOSTILE)])
        engine.send(application, "failed", "slack:tuning")
        engine.send(application, "failed", "finetune:")
    ((_, posted),) = [each for each in received if each[0].endswith("chat.postMessage")]
    form = parse_qs(posted)
    (attachment,) = json.loads(form["attachments"][0])
    assert attachment["text"] == (
        'DatasetInvalid: row 3 has &lt;!channel&gt; &amp; &lt;http://example.com|"help"&gt;'
    )
    assert "job-0 has failed" in form["text"][0]
    assert "<" not in form["text"][0]
    ((_, hook),) = [each for each in received if each[0] == "/hook"]
    assert json.loads(hook)["jobs"][0]["message"] == f"DatasetInvalid: {HOSTILE}"
