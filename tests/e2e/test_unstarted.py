"""A stage that cannot start says why, although only the Events of its Job or its pod say so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.namespaces import fresh_namespace

pytestmark = pytest.mark.cluster

GOAL_SECONDS = 10.0


@pytest.fixture
def empty(operator: ProvidedCluster, kubectl: Kubectl) -> Iterator[Kubectl]:
    """A namespace without any object, but with the operator."""
    del operator
    with fresh_namespace(kubectl) as name:
        room = kubectl.within(name)
        room.apply(product.claim(jobs.CLAIM, "1Gi"))
        room("wait", "serviceaccount/default", "--for=create", "--timeout=30s")
        yield room


def created(found: dict[str, Any]) -> float:
    """The time at which an object was created, in seconds."""
    return datetime.fromisoformat(found["metadata"]["creationTimestamp"]).timestamp()


def message_of(room: Kubectl, name: str, reason: str) -> str:
    """Wait for a condition with this reason and return its message."""
    job = jobs.until(room, name, reason, seconds=40, holds=jobs.waiting(reason))
    return str(product.condition(job, "Reconciling")["message"])


def test_a_quota_for_pods_is_named_within_ten_seconds(empty: Kubectl) -> None:
    quota = {"metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}}
    empty.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    empty("wait", "resourcequota/no-pods", "--for=jsonpath={.status.hard}", "--timeout=30s")
    empty.apply(jobs.fine_tune_job("refused"))
    message = message_of(empty, "refused", "ChildRefused")
    seconds = time.time() - created(empty.json("get", "job", "refused-prepare-0"))
    assert "Job refused-prepare-0 has no pod: FailedCreate: " in message
    assert "exceeded quota: no-pods" in message
    assert seconds < GOAL_SECONDS + 1, "times of objects have whole seconds"
    # Each try of the Job controller has another pod's name, but the status stays.
    version = empty.json("get", "finetunejob", "refused")["metadata"]["resourceVersion"]
    time.sleep(15)
    assert empty.json("get", "finetunejob", "refused")["metadata"]["resourceVersion"] == version
    empty("delete", "resourcequota", "no-pods")
    jobs.until(
        empty,
        "refused",
        "the pod",
        seconds=90,
        holds=lambda _: bool(jobs.stage_pods(empty, "refused", "prepare")),
    )


def test_a_volume_that_cannot_be_mounted_is_named_within_ten_seconds(empty: Kubectl) -> None:
    empty.apply(jobs.fine_tune_job("unmounted", dataset={"configMap": {"name": "absent", "key": "a.jsonl"}}))
    message = message_of(empty, "unmounted", "PodStuck")
    (pod,) = jobs.stage_pods(empty, "unmounted", "prepare")
    scheduled = next(each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled")
    seconds = time.time() - datetime.fromisoformat(scheduled["lastTransitionTime"]).timestamp()
    assert "FailedMount: " in message
    assert 'configmap "absent" not found' in message
    assert seconds < GOAL_SECONDS + 1
