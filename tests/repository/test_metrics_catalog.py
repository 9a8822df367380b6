"""The catalogue of docs/metrics.md lists exactly what operator and trainer expose."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.exposition import Exposition
from finetune_operator.runtime.health import Role, Vitals
from finetune_operator.runtime.health_metrics import HealthMetrics
from finetune_operator.runtime.metrics import GpuCollector, OperatorMetrics
from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.timestamps import utc_now
from finetune_trainer.telemetry.metrics import render_metrics
from finetune_trainer.telemetry.reporter import Reporter
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from scripts.docs.metrics_catalog import PAGE, Entry, document, operator_entries, trainer_entries
from tests.support.operator import NOW, UID, make_progress
from tests.support.repository import ROOT
from tests.support.world import World

TRAINING: dict[str, Any] = {
    "steps": 5,
    "seconds": 4.0,
    "tokens": 5006,
    "reservedBytes": 30,
    "rankSeconds": [0.5, 0.25],
    "rankDeviceBytes": [1, 2],
    "rankHostBytes": [3, 4],
}


def trained() -> JobRecord:
    world = World()
    for stage in (Stage.PREPARE, Stage.TRAIN):
        world.settle()
        world.succeed(stage)
    world.settle()
    return world.job


async def operator_text() -> str:
    """A scrape of an operator with one job."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as in app.py
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    store = Store(GpuStore((), allow_time_slicing=False))
    registry.register(GpuCollector(GpuStore((), allow_time_slicing=False)))
    health = HealthMetrics(registry)
    health.show(Vitals(Role.LEADER, seeded=True, longest_work=0.0, watches={"jobs": 1.0}), 0.0)
    metrics.leads("finetune-operator", leading=True)
    metrics.requested("GET", "200")
    store.put_job(trained())
    activities = Activities(store)
    activities.report(UID, make_progress(Stage.TRAIN, training=TRAINING))
    exposition = Exposition(registry, store, lambda: NOW, metrics.refresh, activities, timedelta(hours=1))
    return b"".join((await exposition.scrape("")).parts).decode()


def trainer_text() -> str:
    """A scrape of a trainer that has measured everything."""
    reporter = Reporter(Identity(UID, "Train", 0))
    reporter.measure(
        steps=2,
        seconds=1.5,
        tokens=7,
        step_seconds=0.5,
        evaluation_loss=2.0,
        router_aux_loss=2.0,
        checkpoint_time=utc_now(),
        allocated_bytes=1,
        peak_allocated_bytes=2,
        reserved_bytes=3,
        peak_reserved_bytes=4,
        rank_seconds=(0.1, 0.2),
        rank_device_bytes=(1, 2),
        rank_host_bytes=(3, 4),
    )
    numbers = {"loss": 1.0, "learning_rate": 1e-4, "gradient_norm": 1.0, "tokens_per_second": 5.0}
    reporter.update("Training", 2, 4, **numbers, peak_memory_bytes=1)
    reporter.close()
    # Both times may be the same here, and a share of no time is not known.
    return render_metrics({**reporter.document(), "startTime": "2026-01-01T00:00:00Z"}).decode()


def exposed(text: str) -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each family with a series, by its name in the catalogue."""
    found: dict[str, tuple[str, set[str]]] = {}
    for family in parse_text(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le", "quantile"}
        found[name] = (family.type, labels)
    return found


def compare(entries: list[Entry], text: str) -> None:
    """Every family is in the catalogue with its type and its labels, and the catalogue has no other one."""
    found = exposed(text)
    catalogue = {entry.name: entry for entry in entries}
    assert found.keys() == catalogue.keys()
    for name, (kind, labels) in found.items():
        assert kind == catalogue[name].type, name
        assert labels <= set(catalogue[name].labels), name


def complaints(text: str) -> list[str]:
    """What `promtool check metrics` says about a scrape."""
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / PAGE).read_text()
    assert document(page) == page


async def test_the_catalogue_lists_what_the_operator_exposes() -> None:
    compare(operator_entries(), await operator_text())


def test_the_catalogue_lists_what_a_trainer_exposes() -> None:
    compare(trainer_entries(), trainer_text())


@pytest.mark.prometheus
async def test_promtool_finds_nothing_to_complain_about_in_the_operators_series() -> None:
    # The name of controller-runtime, which its dashboards expect.
    assert [
        each for each in complaints(await operator_text()) if "leader_election_master_status" not in each
    ] == []


@pytest.mark.prometheus
def test_promtool_finds_nothing_to_complain_about_in_a_trainers_series() -> None:
    assert complaints(trainer_text()) == []
