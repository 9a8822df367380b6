"""The scale benchmark with few jobs: real API server, real Jobs, and pods that kwok runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale.__main__ import main

pytestmark = pytest.mark.full


def test_every_measurement_runs_with_twenty_jobs(tmp_path: Path) -> None:
    sizes = ["--burst", "20", "--lives", "20", "--ended", "20", "--active", "20", "--scrapes", "2"]
    small = ["--namespaces", "3", "--train-seconds", "1", "--timeout", "300", "--soak", "0.5", "--rate", "1"]
    more = ["--before", "5", "--one-by-one"]
    lines = main([*sizes, *small, *more, "--folder", str(tmp_path)])
    found = {(line["measurement"], line.get("limits")): line for line in lines}
    assert len(found) == 6
    for limits in ("default", "lifted"):
        assert 0 < found["burst", limits]["p50Seconds"] <= found["burst", limits]["p99Seconds"]
    lives = found["lives", "lifted"]
    assert lives["phases"] == {"Succeeded": 25}
    assert lives["finished"] == 20
    assert lives["mostRunning"] > 1
    assert lives["jobsWithTwoTrainers"] == 0
    assert lives["podGoneP99Seconds"] > 0
    assert {*lives["cpuMillisecondsOfALife"]} > {
        "operator",
        "kube-apiserver",
        "etcd",
        "kube-scheduler",
        "kwok",
    }
    assert found["restart", "lifted"]["writes"] == 0
    assert found["restart", "lifted"]["namespacesOneByOne"] == 3
    assert found["scrape", None]["megabytes"] > 0.01
    assert found["scrape", None]["loopGapOwnSeconds"] <= found["scrape", None]["loopGapSeconds"] < 60
    assert found["soak", None]["jobs"] > 10
    low, high = found["soak", None]["megabytesAnHour95"]
    assert low < high
    assert list(tmp_path.iterdir()) == []
