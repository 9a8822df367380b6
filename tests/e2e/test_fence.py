"""A leader that is stopped beyond its Lease, with writes in flight. The API server's audit log is the judge."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster
from finetune_operator.cluster.fence import IN_FLIGHT_SECONDS

from tests.support.e2e import jobs
from tests.support.e2e.audit_log import AuditedRequest, read_requests
from tests.support.e2e.leases import leads_one_of_two, lease, until
from tests.support.e2e.machine import survivors
from tests.support.e2e.operator_process import find_replica, stopped

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster]

JOBS = 150
WRITTEN = 20
"""Jobs with a status when the leader is stopped. The writes for the others wait in the leader."""
SLOW = {"replicas": 2, "client": {"qps": 5, "burst": 5}}
"""Two replicas with so low a rate that writes wait for many seconds."""


@pytest.fixture
def slow_replicas(operator: ProvidedCluster) -> Iterator[None]:
    product.install_chart(operator, SLOW)
    yield
    product.install_chart(operator)


@pytest.fixture
def audit_log(cluster: ProvidedCluster) -> Path:
    """The audit log of the dev cluster, which lies beside its kubeconfig."""
    return cluster.kubeconfig.parent / "log" / "audit.log"


def decided(kubectl: Kubectl) -> int:
    """The number of jobs whose status says that they are suspended."""
    items = kubectl.json("get", "finetunejobs")["items"]
    return sum(product.condition(job, "Suspended")["status"] == "True" for job in items)


def shown(requests: list[AuditedRequest]) -> list[str]:
    return [f"{each.received} {each.pod} {each.verb} {each.resource} {each.name}" for each in requests]


def test_a_leader_that_was_stopped_beyond_its_lease_writes_nothing_when_it_wakes(
    kubectl: Kubectl, namespace: str, slow_replicas: None, audit_log: Path
) -> None:
    del slow_replicas
    scoped = kubectl.within(namespace)
    until("two replicas, and one that leads", lambda: leads_one_of_two(kubectl), seconds=60)
    leader = lease(kubectl)["holderIdentity"]
    process = find_replica(leader)
    scoped.apply(*(jobs.fine_tune_job(f"job{number}", suspend=True) for number in range(JOBS)))
    until("some statuses", lambda: decided(scoped) >= WRITTEN, seconds=60)

    with stopped(process):
        when = datetime.now(UTC)
        before = decided(scoped)
        assert before <= JOBS - WRITTEN, "writes must wait in the stopped leader"
        until("another leader", lambda: lease(kubectl)["holderIdentity"] not in {"", leader}, seconds=60)
        until("its writes", lambda: decided(scoped) >= before + WRITTEN // 2, seconds=60)
        assert survivors({process}), "the kubelet must not have ended the stopped leader"
        assert decided(scoped) < JOBS, "the stopped leader must wake with work that is still to do"
    until("the end of the former leader", lambda: not survivors({process}), seconds=60)
    until("all statuses", lambda: decided(scoped) == JOBS, seconds=120)

    successor = lease(kubectl)["holderIdentity"]
    assert successor != leader
    writes = [request for request in read_requests(audit_log) if request.writes]
    early = [request for request in writes if request.pod == leader and request.received <= when]
    assert len(early) >= WRITTEN, "the log must contain the writes of the leader"
    assert [request for request in writes if request.pod == successor and request.received > when]
    limit = when + timedelta(seconds=IN_FLIGHT_SECONDS)
    late = [request for request in writes if request.pod == leader and request.received > limit]
    assert shown(late) == []
