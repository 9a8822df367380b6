"""The chart's configuration of Alertmanager, from the series of jobs to what a receiver gets, with the real programs."""

from __future__ import annotations

import json
import queue
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.runtime.job_series import JobSeries

from tests.support.chart import helm, only, render
from tests.support.operator import make_job
from tests.support.repository import ROOT
from tests.support.servers.loopback import free_port, http_server, running

pytestmark = pytest.mark.prometheus

SLACK = {"apiUrlFile": "/etc/alertmanager/secrets/finetune/slack", "channel": "#fine-tuning"}
EMAIL = {"to": "team@example.com", "from": "alerts@example.com", "smarthost": "smtp.example.com:587"}
LOGIN = {"username": "alerts", "passwordFile": "/etc/alertmanager/secrets/finetune/smtp"}
WEBHOOK = {
    "url": "https://hooks.example.com/finetune",
    "tokenFile": "/etc/alertmanager/secrets/finetune/hook",
}
REASONS = json.loads((ROOT / "contract/reasons.json").read_text())["job"]
SECONDS = 40


def configuration(**channels: dict[str, str]) -> dict[str, Any]:
    """The parsed configuration with these channels."""
    arguments = [f"--set-json=alertmanager.{name}={json.dumps(value)}" for name, value in channels.items()]
    body = only(render("--set=alertmanager.enabled=true", *arguments), "Secret", "-alertmanager")
    found: dict[str, Any] = yaml.safe_load(body["stringData"]["alertmanager.yaml"])
    return found


def rules() -> dict[str, Any]:
    """The alerts with that of successes."""
    found: dict[str, Any] = only(
        render(
            "--set=prometheusRule.enabled=true,prometheusRule.succeeded=true,prometheusRule.stalledSeconds=0"
        ),
        "PrometheusRule",
    )["spec"]
    return found


def ended(name: str, truth: str, reason: str, **status: Any) -> Any:
    """A job in its last state, as the operator's store has it."""
    conditions = [{"type": "Succeeded", "status": truth, "reason": reason, "message": "why"}]
    return make_job(name=name, uid=f"uid-{name}", status={"conditions": conditions, **status})


@pytest.mark.parametrize(
    "channels",
    [
        {"slack": SLACK},
        {"email": EMAIL},
        {"webhook": {"url": "http://hooks.team.svc:8080/x"}},
        {"slack": SLACK, "email": EMAIL | LOGIN, "webhook": WEBHOOK},
    ],
    ids="-".join,
)
def test_amtool_accepts_each_combination_of_channels(
    tmp_path: Path, channels: dict[str, dict[str, str]]
) -> None:
    path = tmp_path / "alertmanager.yaml"
    path.write_text(yaml.safe_dump(configuration(**channels)))
    done = subprocess.run(["amtool", "check-config", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for alert, receiver in {"FineTuneJobFailed": "finetune-end", "Watchdog": "finetune-none"}.items():
        routed = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={path}", f"alertname={alert}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert routed.stdout.strip() == receiver


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "alertmanager.enabled=true",
            "alertmanager.slack, alertmanager.email or alertmanager.webhook must be",
        ),
        ("alertmanager.slack.channel=#x", "apiUrlFile"),
        ("alertmanager.slack.token=abc", "token"),
        ("alertmanager.email.to=a@example.com", "smarthost"),
        ("alertmanager.webhook.url=https://user:secret@example.com", "pattern"),
        ("alertmanager.groupWait=soon", "pattern"),
    ],
)
def test_a_channel_that_cannot_work_is_refused_by_name(argument: str, message: str) -> None:
    done = helm("template", "ft", str(ROOT / "helm/finetune-operator"), "--set", argument)
    assert done.returncode != 0
    assert message in done.stderr


def test_no_notification_is_configured_by_default() -> None:
    objects = render()
    assert not [item for item in objects if item["kind"] == "Secret"]
    assert not [item for item in objects if "notifications" in item["metadata"]["name"]]


@pytest.mark.parametrize("alert", ["FineTuneJobFailed", "FineTuneJobStalled"])
def test_every_reason_of_such_an_end_has_its_remedy_in_the_alert(alert: str) -> None:
    (rule,) = [each for group in rules()["groups"] for each in group["rules"] if each.get("alert") == alert]
    classes = {"Stalled"} if alert.endswith("Stalled") else {"Permanent", "Retryable", "Interrupted"}
    named = {reason for reason in REASONS if f'$labels.reason "{reason}"' in rule["annotations"]["remedy"]}
    assert named == {reason for reason, entry in REASONS.items() if entry["class"] in classes}
    assert not any("{{" in entry["remedy"] for entry in REASONS.values())


@contextmanager
def programs(jobs: list[Any], folder: Path) -> Iterator[queue.Queue[dict[str, Any]]]:
    """Prometheus scrapes the operator's series of `jobs`; Alertmanager sends to the queue that this yields."""
    received: queue.Queue[dict[str, Any]] = queue.Queue()
    metrics = b"".join(JobSeries().render(jobs))

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.command == "POST":
            received.put(json.loads(request.rfile.read(int(request.headers["Content-Length"]))))
        request.send_response(200)
        request.send_header("Content-Type", "text/plain; version=0.0.4")
        request.end_headers()
        request.wfile.write(b"" if request.command == "POST" else metrics)

    with http_server(answer, host="127.0.0.1") as origin:
        config = configuration(webhook={"url": f"{origin}/hook"})
        config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
        (folder / "alertmanager.yaml").write_text(yaml.safe_dump(config))
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules()))
        ports = (free_port(), free_port())
        scrape = {"job_name": "operator", "honor_labels": True, "scrape_interval": "1s",
                  "static_configs": [{"targets": [origin.partition("//")[2]]}]}  # fmt: skip
        prometheus = {
            "global": {"evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [scrape],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[0]}"]}]}]},
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(prometheus))
        manager = [
            "prometheus-alertmanager", f"--config.file={folder}/alertmanager.yaml", "--cluster.listen-address=",
            f"--storage.path={folder}/alerts", f"--web.listen-address=127.0.0.1:{ports[0]}",
        ]  # fmt: skip
        server = [
            "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/series",
            f"--web.listen-address=127.0.0.1:{ports[1]}",
        ]  # fmt: skip
        with running(manager, ports[0], {}), running(server, ports[1], {}):
            yield received


def test_a_webhook_gets_reason_remedy_and_cost_of_jobs_that_ended_or_stalled(tmp_path: Path) -> None:
    usage = {
        "gpuSeconds": 30,
        "wastedGpuSeconds": 0,
        "cost": {"amount": "3.4", "wasted": "0", "currency": "EUR"},
    }
    jobs = [
        ended("broken", "False", "InvalidDataset", phase="Failed"),
        ended("done", "True", "Completed", phase="Succeeded", usage=usage),
        ended("unpriced", "True", "Completed", phase="Succeeded"),
        ended("large", "Unknown", "DoesNotFit", phase="Stalled"),
        ended("fine", "Unknown", "Training", phase="Training"),
    ]
    found: dict[str, dict[str, str]] = {}
    with programs(jobs, tmp_path) as received:
        while len(found) < 4:
            message = received.get(timeout=SECONDS)
            assert message["status"] == "firing"
            for alert in message["alerts"]:
                labels = alert["labels"]
                found[labels["name"]] = alert["annotations"] | {"alert": labels["alertname"]}
    assert {name: each["alert"] for name, each in found.items()} == {
        "broken": "FineTuneJobFailed",
        "large": "FineTuneJobStalled",
        "done": "FineTuneJobSucceeded",
        "unpriced": "FineTuneJobSucceeded",
    }
    assert found["broken"]["summary"].endswith("/broken has failed: InvalidDataset")
    assert found["broken"]["remedy"] == REASONS["InvalidDataset"]["remedy"]
    assert found["large"]["remedy"] == REASONS["DoesNotFit"]["remedy"]
    assert found["done"]["description"].strip().startswith("It cost 3.40 EUR. The report is")
    assert found["unpriced"]["description"].strip().startswith("The report is")
    assert "finetune report --namespace" in found["done"]["description"]
