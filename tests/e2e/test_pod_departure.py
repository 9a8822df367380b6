"""A pod is deleted soon after its process ends, even on failure; benchmarks/pod_departure.py prints the distribution."""

from __future__ import annotations

import time

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

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


GRACE_SECONDS = 90
HOOKS = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "slow-start"},
    # Python imports this module before it looks at what it should run.
    "data": {"sitecustomize.py": "import time\nprint('starting', flush=True)\ntime.sleep(600)\n"},
}


def test_a_trainer_that_handles_no_signal_yet_leaves_at_once(
    room: Kubectl, operator: ProvidedCluster
) -> None:
    """Linux drops a signal to the first process of a container that does not handle it."""
    container = {
        "name": "trainer",
        "image": operator.trainer_image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["train"],
        "env": [{"name": "PYTHONPATH", "value": "/hooks"}],
        "securityContext": product.RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "hooks", "mountPath": "/hooks"}],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": product.RESTRICTED_POD,
        "containers": [container],
        "volumes": [{"name": "hooks", "configMap": {"name": "slow-start"}}],
    }
    room.apply(HOOKS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "slow-start"}, "spec": spec})
    room("wait", "pod/slow-start", "--for=condition=Ready", "--timeout=60s")
    deadline = time.monotonic() + 60
    while room("logs", "slow-start") != "starting\n":
        assert time.monotonic() < deadline, "the trainer must begin to start within a minute"
        time.sleep(0.2)
    before = time.monotonic()
    room("delete", "pod", "slow-start", "--wait=true")
    assert time.monotonic() - before < GENEROUS_SECONDS
