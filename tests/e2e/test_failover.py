"""A standby takes over from a leader that crashes, and from one that is told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.leases import leads_one_of_two, lease, until
from tests.support.e2e.operator_process import find_replica

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster]

LEASE_SECONDS = 15.0
"""The validity of the Lease. A standby that leads earlier has seen that the leader released it."""
CRASH_SECONDS = 45.0
"""The validity, two looks of a standby, and the time that a busy machine needs to start and to list everything."""


@pytest.fixture
def replicas(operator: ProvidedCluster) -> Iterator[None]:
    product.install_chart(operator, {"replicas": 2})
    yield
    product.install_chart(operator)


def decision_time(scoped: Kubectl, job: str) -> float:
    """Return the seconds until a replica has decided about a new job."""
    scoped.apply(jobs.fine_tune_job(job, suspend=True))

    def decided() -> bool:
        found = scoped.json("get", "finetunejob", job)
        return bool(found.get("status", {}).get("conditions"))

    return until(f"a status of {job}", decided, seconds=CRASH_SECONDS)


def test_jobs_are_decided_soon_after_a_crash_and_at_once_after_a_stop(
    kubectl: Kubectl, namespace: str, replicas: None
) -> None:
    del replicas
    scoped = kubectl.within(namespace)
    until("two replicas, and one that leads", lambda: leads_one_of_two(kubectl), seconds=60)
    first = lease(kubectl)["holderIdentity"]
    os.kill(find_replica(first).pid, signal.SIGKILL)
    crashed = decision_time(scoped, "crashed")
    until("two replicas again", lambda: leads_one_of_two(kubectl), seconds=60)
    second = lease(kubectl)["holderIdentity"]
    kubectl.within(product.SYSTEM_NAMESPACE)("delete", "pod", second, "--wait=false")
    # Until it is told to stop, it goes on deciding.
    stopped = until(
        "another leader",
        lambda: lease(kubectl)["holderIdentity"] not in {"", second},
        seconds=CRASH_SECONDS,
    )
    decision_time(scoped, "stopped")
    print(
        f"a replica decided {crashed:.1f} s after a crash, and another one led {stopped:.1f} s after a deletion"
    )
    assert stopped < LEASE_SECONDS
