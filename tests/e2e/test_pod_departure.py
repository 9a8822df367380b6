"""A pod is deleted soon after its process ends, even on failure; benchmarks/pod_departure.py prints the distribution."""

from __future__ import annotations

import pytest
from devcluster import product

from tests.support.e2e.tiny_runs import GENEROUS_SECONDS, TinyRuns

pytestmark = pytest.mark.cluster


def test_pods_of_all_stages_leave_at_once(tiny_runs: TinyRuns) -> None:
    assert product.condition(tiny_runs.good, "Succeeded")["status"] == "True", tiny_runs.good["status"]
    assert product.condition(tiny_runs.bad, "Succeeded")["reason"] == "MalformedDataset"
    assert sorted((d.stage, d.outcome) for d in tiny_runs.departures) == [
        ("merge", "Succeeded"),
        ("prepare", "Failed"),
        ("prepare", "Succeeded"),
        ("train", "Succeeded"),
    ]
    assert max(d.seconds for d in tiny_runs.departures) < GENEROUS_SECONDS
    assert tiny_runs.children_left == []


def test_the_record_outlives_the_pods(tiny_runs: TinyRuns) -> None:
    assert {a["kind"] for a in tiny_runs.good["status"]["artifacts"]} == {"Adapter", "Merged"}
    assert tiny_runs.bad["status"]["failure"]["logTail"]
