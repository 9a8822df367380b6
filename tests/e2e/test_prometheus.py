"""A real Prometheus scrapes the operator and a real run, by all three ways that docs/metrics.md names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.chart import only, render
from tests.support.dashboards import panel_queries
from tests.support.e2e import jobs
from tests.support.e2e.prometheus import ANNOTATIONS, Prometheus, annotated_pods, prometheus, scrape_config

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.full]

VALUES = {"podAnnotations": ANNOTATIONS, "trainer": {"podDefaults": {"annotations": ANNOTATIONS}}}
MONITORS = "serviceMonitor.enabled=true,podMonitor.enabled=true,prometheusRule.enabled=true"
INTERVAL = "1s"
TRAINING = {
    "maximumSteps": 150,
    "effectiveBatchSize": 2,
    "microBatchSize": 2,
    "maximumLength": 256,
    "learningRate": 0.001,
    "checkpoint": {"intervalSteps": 50},
}


@dataclass(frozen=True)
class Scraped:
    """Prometheus after the ends of a job that succeeded, `curve`, and one that failed, `broken`."""

    prometheus: Prometheus
    namespace: str
    started: float

    @property
    def seconds(self) -> float:
        """The time since the jobs began."""
        return time.time() - self.started

    def ever(self, expression: str) -> bool:
        """True if the expression had a value since the jobs began."""
        return bool(self.prometheus.history(expression, self.seconds))


@pytest.fixture(scope="module")
def scraped(
    operator: ProvidedCluster, workplace: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scraped]:
    product.install_chart(operator, VALUES)
    try:
        yield from run_scraped(operator, workplace, tmp_path_factory.mktemp("prometheus"))
    finally:
        product.install_chart(operator)


def run_scraped(operator: ProvidedCluster, workplace: Kubectl, folder: Path) -> Iterator[Scraped]:
    """Let Prometheus scrape both jobs from their beginning to their end, and to their deletion."""
    release = [
        f"--set=fullnameOverride={product.RELEASE}-finetune-operator",
        f"--namespace={product.SYSTEM_NAMESPACE}",
    ]
    objects = render("--set", MONITORS, *release)
    monitors = [only(objects, kind) for kind in ("ServiceMonitor", "PodMonitor")]
    for monitor in monitors:
        labels = monitor["spec"]["selector"]["matchLabels"]
        if "app.kubernetes.io/instance" in labels:
            labels["app.kubernetes.io/instance"] = product.RELEASE
    address = workplace.json("get", "service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
    with prometheus(
        workplace,
        operator.trainer_image,
        [*(scrape_config(each, INTERVAL) for each in monitors), annotated_pods(INTERVAL)],
        only(objects, "PrometheusRule")["spec"],
        f"https://{address}:443",
        folder,
    ) as server:
        started = time.time()
        workplace.apply(
            jobs.config_map("broken", "not json\n"),
            jobs.fine_tune_job("broken", dataset={"configMap": {"name": "broken", "key": "data.jsonl"}}),
            jobs.fine_tune_job("curve", training=TRAINING),
        )
        product.follow(workplace, "broken", seconds=120)
        product.follow(workplace, "curve", seconds=300)
        server.await_series('finetunejob_status_reason{name="curve",phase="Succeeded"}', seconds=30)
        yield Scraped(server, str(workplace.namespace), started)
        workplace("delete", "finetunejob", "curve", "broken", "--wait=true")
        server_ends(server)


def server_ends(server: Prometheus) -> None:
    """No series outlives its job."""
    deadline = time.monotonic() + 30
    while server.query('finetunejob_info{name=~"curve|broken"}'):
        assert time.monotonic() < deadline, "the series of a deleted job must end"
        time.sleep(1)


def test_the_operator_is_scraped_by_a_service_monitor_and_by_annotations(scraped: Scraped) -> None:
    for job in (f"ServiceMonitor/{product.RELEASE}-finetune-operator", "annotations"):
        labels = f'job="{job}",name="curve",namespace="{scraped.namespace}"'
        assert scraped.ever(f"finetunejob_info{{{labels}}}"), job


def test_running_trainers_are_scraped_by_a_pod_monitor_and_by_annotations(scraped: Scraped) -> None:
    labels = f'job="PodMonitor/{product.RELEASE}-finetune-operator-stages",name="curve",namespace="{scraped.namespace}"'
    for series in (
        "finetune_trainer_loss",
        "finetune_trainer_step_duration_seconds_count",
        "finetune_trainer_tokens_total",
    ):
        assert scraped.ever(f"{series}{{{labels}}}"), series
    assert scraped.ever(f'finetune_trainer_loss{{job="annotations",namespace="{scraped.namespace}"}}')


def test_the_curves_keep_their_last_points_after_the_pod_is_gone(scraped: Scraped) -> None:
    labels = f'name="curve",namespace="{scraped.namespace}"'
    assert scraped.prometheus.query(f"finetune_trainer_loss{{{labels}}}") == []
    for series in ("step_loss", "learning_rate", "gradient_norm", "tokens_per_second", "trained_tokens"):
        assert scraped.prometheus.query(f"finetunejob_{series}{{{labels}}}"), series
    assert scraped.prometheus.query(f"finetunejob_heartbeat_timestamp_seconds{{{labels}}}") == []


def test_every_panel_of_the_dashboards_has_data_or_says_why_not(scraped: Scraped) -> None:
    variables = {
        "namespace": scraped.namespace,
        "job": "curve",
        "operator_namespace": product.SYSTEM_NAMESPACE,
        "__rate_interval": "1m",
    }
    empty, kept = [], []
    for panel in panel_queries(variables):
        found = [scraped.prometheus.history(query, scraped.seconds) for query in panel.queries]
        kept.append({"dashboard": panel.dashboard, "title": panel.title, "series": found})
        shown = any(found)
        print(f"{panel.dashboard} {panel.title}: {'data' if shown else panel.may_be_empty or 'EMPTY'}")
        if not shown and not panel.may_be_empty:
            empty.append(f"{panel.dashboard}: {panel.title}")
    if path := os.environ.get("PANEL_DATA"):
        # scripts/docs/dashboard_pictures.py draws them.
        Path(path).write_text(json.dumps(kept))
    assert empty == []


def test_the_alert_about_failed_jobs_fires_for_the_failed_job_alone(scraped: Scraped) -> None:
    found = scraped.prometheus.await_series('ALERTS{alertname="FineTuneJobFailed"}', seconds=10)
    names = {each["metric"]["name"] for each in found if each["metric"]["namespace"] == scraped.namespace}
    assert names == {"broken"}
    assert scraped.prometheus.query('ALERTS{alertname=~"FineTuneOperator.*"}') == []
