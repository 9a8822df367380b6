from __future__ import annotations

from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.runtime.metrics import GpuCollector, OperatorMetrics
from finetune_operator.sizing.gpus.profiles import GpuProfile
from prometheus_client import CollectorRegistry, generate_latest

from tests.support.operator import make_node


def test_the_operators_series_have_controller_runtimes_names() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    metrics.workers(8, lambda: 3.0)
    metrics.added(2)
    metrics.taken(1, 0.5)
    metrics.done(0.25)
    metrics.retried()
    metrics.active(1)
    metrics.reconciled("error", 0.1)
    metrics.leads("finetune-operator", leading=True)
    metrics.requested("GET", "200")
    metrics.refresh()
    metrics.events("dropped", 3)
    metrics.polled("silent")
    name, controller = {"name": "finetunejob"}, {"controller": "finetunejob"}
    expected: list[tuple[str, dict[str, str], float]] = [
        ("workqueue_depth", name, 1),
        ("workqueue_adds_total", name, 1),
        ("workqueue_queue_duration_seconds_sum", name, 0.5),
        ("workqueue_work_duration_seconds_sum", name, 0.25),
        ("workqueue_retries_total", name, 1),
        ("workqueue_longest_running_processor_seconds", name, 3),
        ("controller_runtime_active_workers", controller, 1),
        ("controller_runtime_max_concurrent_reconciles", controller, 8),
        ("controller_runtime_reconcile_errors_total", controller, 1),
        ("controller_runtime_reconcile_total", {**controller, "result": "error"}, 1),
        ("controller_runtime_reconcile_total", {**controller, "result": "success"}, 0),
        ("controller_runtime_reconcile_time_seconds_count", controller, 1),
        ("leader_election_master_status", {"name": "finetune-operator"}, 1),
        ("rest_client_requests_total", {"code": "200", "method": "GET"}, 1),
        ("finetune_operator_events_total", {"outcome": "dropped"}, 3),
        ("finetune_operator_events_total", {"outcome": "written"}, 0),
        ("finetune_operator_progress_polls_total", {"outcome": "silent"}, 1),
        ("finetune_operator_progress_polls_total", {"outcome": "answered"}, 0),
    ]
    for series, labels, value in expected:
        assert registry.get_sample_value(series, labels) == value, series


def test_gpus_of_nodes_and_of_profiles_have_different_states() -> None:
    profile = GpuProfile(name="pool", product="NVIDIA L4", labels={"pool": "l4"})
    gpus, registry = GpuStore((profile,), allow_time_slicing=False), CollectorRegistry()
    registry.register(GpuCollector(gpus))
    gpus.put(make_node(gpus=4))
    assert b"finetune_gpus{" not in generate_latest(registry), "no job has asked for any"
    (offer, _) = gpus.inventory.offers("nvidia.com/gpu")
    labels = {"product": "NVIDIA L4", "resource": "nvidia.com/gpu"}
    assert registry.get_sample_value("finetune_gpus", {**labels, "state": "Available"}) == 4
    assert registry.get_sample_value("finetune_gpus", {**labels, "state": "Catalogue"}) == 1
    assert registry.get_sample_value("finetune_gpu_usable_bytes", labels) == offer.gpu.usable_bytes
