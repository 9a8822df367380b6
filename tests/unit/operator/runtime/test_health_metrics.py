from __future__ import annotations

import math

from finetune_operator.runtime.health import Role, Vitals
from finetune_operator.runtime.health_metrics import HealthMetrics
from prometheus_client import CollectorRegistry


def test_measured_values_and_problems_are_series() -> None:
    registry = CollectorRegistry()
    metrics = HealthMetrics(registry)
    metrics.show(Vitals(role=Role.LEADER, watches={"pods": 500.0, "jobs": 3.0}, lease_age=1.5), 0.25)
    expected = [
        ("finetune_operator_event_loop_lag_seconds", {}, 0.25),
        ("finetune_operator_watch_age_seconds", {"resource": "pods"}, 500),
        ("finetune_operator_lease_age_seconds", {}, 1.5),
        ("finetune_operator_health_problems", {"probe": "liveness"}, 1),
        ("finetune_operator_health_problems", {"probe": "readiness"}, 1),
    ]
    for series, labels, value in expected:
        assert registry.get_sample_value(series, labels) == value, series


def test_a_standby_has_no_watches_and_no_lease() -> None:
    registry = CollectorRegistry()
    metrics = HealthMetrics(registry)
    metrics.show(Vitals(role=Role.LEADER, watches={"pods": 1.0}, lease_age=1.5), 0)
    metrics.show(Vitals(role=Role.STANDBY), 0)
    assert registry.get_sample_value("finetune_operator_watch_age_seconds", {"resource": "pods"}) is None
    assert math.isnan(registry.get_sample_value("finetune_operator_lease_age_seconds") or 0)
    assert registry.get_sample_value("finetune_operator_health_problems", {"probe": "readiness"}) == 0


def test_a_namespace_that_cannot_be_read_is_a_series_and_no_problem() -> None:
    registry = CollectorRegistry()
    metrics = HealthMetrics(registry)
    metrics.show(Vitals(role=Role.LEADER, seeded=True, namespaces={"a": True, "b": False}), 0)
    name = "finetune_operator_namespace_served"
    assert registry.get_sample_value(name, {"namespace": "a"}) == 1
    assert registry.get_sample_value(name, {"namespace": "b"}) == 0
    assert registry.get_sample_value("finetune_operator_health_problems", {"probe": "liveness"}) == 0
    metrics.show(Vitals(), 0)
    assert registry.get_sample_value(name, {"namespace": "a"}) is None


def test_a_store_without_the_jobs_that_have_ended_is_a_series_and_no_problem() -> None:
    registry = CollectorRegistry()
    metrics = HealthMetrics(registry)
    for filled in (False, True):
        metrics.show(Vitals(role=Role.LEADER, seeded=True, filled=filled), 0)
        assert registry.get_sample_value("finetune_operator_store_filled") == int(filled)
        assert registry.get_sample_value("finetune_operator_health_problems", {"probe": "readiness"}) == 0
