"""Two jobs on the tiny model, one successful and one failed, run once for all tests of finished jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e import jobs
from tests.support.e2e.pod_departures import Departure, DepartureWatch

CACHE = "bases"
"""Name of the model cache's claim, which the good job fills."""
PODS = 4
# The goal is 2 s; a busy machine may take longer, but never an hour.
GENEROUS_SECONDS = 20


@dataclass(frozen=True)
class TinyRuns:
    """The finished jobs, the departures of their pods, and their remaining children.

    `document` is the applied manifest of the good job; the plan chooses its micro-batch.
    """

    document: dict[str, Any]
    good: dict[str, Any]
    bad: dict[str, Any]
    departures: list[Departure]
    children_left: list[dict[str, Any]]


def run_tiny_jobs(kubectl: Kubectl) -> TinyRuns:
    """Apply both jobs to kubectl's namespace and watch them until their pods are deleted."""
    assert kubectl.namespace is not None
    good = jobs.fine_tune_job("good", modelCache={"claimName": CACHE})
    del good["spec"]["training"]["microBatchSize"]  # so that the plan has a choice
    kubectl.apply(
        product.claim(CACHE, "1Gi"),
        jobs.config_map("bad", "not json\n"),
        good,
        jobs.fine_tune_job("bad", dataset={"configMap": {"name": "bad", "key": "data.jsonl"}}),
    )
    with DepartureWatch(kubectl.kubeconfig, kubectl.namespace) as departing:
        ended = product.follow(kubectl, "good", seconds=300)
        failed = product.follow(kubectl, "bad", seconds=120)
        deadline = time.monotonic() + GENEROUS_SECONDS
        while len(departing.departures()) < PODS and time.monotonic() < deadline:
            time.sleep(0.2)
        departures = departing.departures()
    children = kubectl.json("get", "jobs,pods", "--selector=finetune.dev/job in (good,bad)")["items"]
    return TinyRuns(good, ended, failed, departures, children)
