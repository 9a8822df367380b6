from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.stages import Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.runtime.metrics import GpuCollector, JobCollector, OperatorMetrics
from finetune_operator.sizing.gpus.profiles import GpuProfile
from prometheus_client import CollectorRegistry, generate_latest

from tests.support.operator import TRAIN, UID, make_inventory, make_node
from tests.support.world import World

MEASURED = {"allocatedBytes": 10**9, "reservedBytes": 2 * 10**9}


def test_job_series_come_from_the_store_and_end_with_their_object() -> None:
    world = World()
    for stage in Stage:
        world.settle()
        world.succeed(stage)
    world.settle()
    store, registry = Store(GpuStore((), allow_time_slicing=False)), CollectorRegistry()
    registry.register(JobCollector(store))
    store.put_job(world.job)
    labels = {"namespace": "team", "name": "demo"}
    assert (
        registry.get_sample_value("finetunejob_info", {**labels, "model": "smol", "phase": "Succeeded"}) == 1
    )
    condition = {**labels, "type": "Succeeded"}
    assert registry.get_sample_value("finetunejob_status_condition", {**condition, "status": "True"}) == 1
    assert registry.get_sample_value("finetunejob_status_condition", {**condition, "status": "False"}) == 0
    assert registry.get_sample_value("finetunejob_progress_ratio", labels) == 1
    assert registry.get_sample_value("finetunejob_train_loss", labels) == 0.5
    assert registry.get_sample_value("finetunejob_base_loss", labels) == 2
    assert registry.get_sample_value("finetunejob_attempts", labels) == 3
    assert registry.get_sample_value("finetunejob_requested_gpus", labels) == 1
    assert (
        registry.get_sample_value("finetunejob_completion_timestamp_seconds", labels) == world.now.timestamp()
    )
    store.remove_job(world.job.key, UID)
    assert b'name="demo"' not in generate_latest(registry)


def test_a_job_without_status_has_the_series_that_are_known() -> None:
    store, registry = Store(GpuStore((), allow_time_slicing=False)), CollectorRegistry()
    registry.register(JobCollector(store))
    store.put_job(replace(World().job, status={}))
    labels = {"namespace": "team", "name": "demo"}
    assert registry.get_sample_value("finetunejob_info", {**labels, "model": "smol", "phase": "Pending"}) == 1
    assert registry.get_sample_value("finetunejob_created_timestamp_seconds", labels) is not None
    assert registry.get_sample_value("finetunejob_progress_ratio", labels) is None


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
    metrics.events("dropped", 3)
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
    ]
    for series, labels, value in expected:
        assert registry.get_sample_value(series, labels) == value, series


def test_estimated_and_measured_memory_have_a_ratio_once_there_is_a_measurement() -> None:
    world = World()
    for stage in (Stage.PREPARE, Stage.TRAIN):
        world.settle()
        if stage is Stage.PREPARE:
            world.succeed(stage)
        else:
            world.succeed(stage, train={**TRAIN, "memory": MEASURED})
    store, registry = Store(GpuStore((), allow_time_slicing=False)), CollectorRegistry()
    registry.register(JobCollector(store))
    labels = {"namespace": "team", "name": "demo"}
    store.put_job(world.job)
    estimated = registry.get_sample_value("finetunejob_memory_estimated_bytes", labels)
    assert estimated == world.job.status["plan"]["memory"]["peakBytes"]
    assert registry.get_sample_value("finetunejob_memory_ratio", labels) is None
    world.settle()
    store.put_job(world.job)
    assert registry.get_sample_value("finetunejob_memory_measured_bytes", labels) == 10**9
    assert registry.get_sample_value("finetunejob_memory_ratio", labels) == 10**9 / int(estimated or 0)


def test_stalled_jobs_are_counted_by_reason() -> None:
    world = World(inventory=make_inventory())
    world.settle()
    world.succeed(Stage.PREPARE)
    world.settle()
    store, registry = Store(GpuStore((), allow_time_slicing=False)), CollectorRegistry()
    registry.register(JobCollector(store))
    store.put_job(world.job)
    store.put_job(replace(world.job, name="other", uid="other"))
    assert registry.get_sample_value("finetunejobs_stalled", {"reason": "DoesNotFit"}) == 2
    assert registry.get_sample_value("finetunejobs_stalled", {"reason": "GpuNotSupported"}) == 0


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
