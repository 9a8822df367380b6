"""Faults between the operator and the API server, kills at every write, and the permissions that all this uses.

Real processes of the operator run on this machine, each with a proxy before the API server. Each serves a namespace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from devcluster import product
from devcluster.gpus import first_node
from devcluster.kubectl import Kubectl
from devcluster.layout import OPERATOR_NAMESPACE
from devcluster.provider import ProvidedCluster

from tests.support.chart import permissions, render
from tests.support.e2e.audit_log import read_requests
from tests.support.faults import FAULT_MATRIX
from tests.support.faults.cells import CELLS, ROWS, Cell
from tests.support.faults.kinds import Kind
from tests.support.faults.lane import ACCOUNT
from tests.support.faults.matrix import run_cells, run_kills, table
from tests.support.faults.trials import KillResult, Result

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster]

ONE_OF_EACH = {
    "PATCH finetunejobs/status": Kind.CONFLICT,
    "WATCH pods": Kind.EXPIRED,
    "DELETE pods": Kind.TOO_MANY,
    "LIST events": Kind.INTERNAL,
    "PATCH events": Kind.UNAVAILABLE,
    "PATCH persistentvolumeclaims": Kind.LATENCY,
    "DELETE jobs": Kind.RESET_BEFORE,
    "POST jobs": Kind.RESET_AFTER,
    "PUT leases": Kind.HALF_OPEN,
    "WATCH finetunejobs": Kind.UNAUTHORIZED,
    "WATCH jobs": Kind.DROPPED,
    "WATCH persistentvolumeclaims": Kind.DUPLICATED,
    "WATCH nodes": Kind.CLOSED,
}
"""Every kind of fault, and together every verb that the operator is granted."""
WITHOUT_REQUEST = {
    # The admission plugin OwnerReferencesPermissionEnforcement asks for it when a child with blockOwnerDeletion is created.
    ("finetune.dev", "finetunejobs/finalizers", "update")
}
"""Granted verbs for which no request of the operator can be seen."""
MISSED = 4
"""Kills at writes that a life may lack: one status write fewer, or two, before and after."""


@pytest.fixture(scope="module")
def alone(operator: ProvidedCluster, kubectl: Kubectl) -> Iterator[datetime]:
    """Stop the cluster's own operator, and keep pods off the real node; gives the time from which that holds."""
    system, node = kubectl.within(OPERATOR_NAMESPACE), first_node(kubectl)
    kubectl("cordon", node)
    try:
        system("scale", "deployment", "--all", "--replicas=0")
        system("wait", "--for=delete", "pod", "--all", "--timeout=60s")
        yield datetime.now(UTC)
    finally:
        kubectl("uncordon", node)
        product.install_chart(operator)


@pytest.fixture(scope="module")
def survivals(
    alone: datetime, operator: ProvidedCluster, tmp_path_factory: pytest.TempPathFactory
) -> list[Result]:
    """A life under a fault of every kind."""
    del alone
    rows = {str(row): row for row in ROWS}
    cells = [Cell(rows[row], kind) for row, kind in ONE_OF_EACH.items()]
    return asyncio.run(run_cells(operator.kubeconfig, cells, tmp_path_factory.mktemp("faults"), lanes=4))


def problems(results: list[Result] | list[KillResult]) -> str:
    """What has failed, with everything that is known about it."""
    return "\n".join(str(result) for result in results if result.problems)


def test_a_job_succeeds_whatever_fault_its_operator_meets(survivals: list[Result]) -> None:
    assert {result.cell.kind for result in survivals} == set(Kind)
    assert problems(survivals) == ""


def test_the_operator_uses_every_permission_of_the_chart_and_asks_for_no_other(
    survivals: list[Result], alone: datetime, operator: ProvidedCluster
) -> None:
    assert survivals
    account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{ACCOUNT}"
    log = operator.kubeconfig.parent / "log" / "audit.log"
    requests = [each for each in read_requests(log) if each.user == account and each.received >= alone]
    assert [each for each in requests if not each.allowed] == []
    used = {(each.group, each.resource, each.verb) for each in requests}
    assert permissions(render()) - used == WITHOUT_REQUEST


@pytest.mark.full
def test_a_job_succeeds_for_every_fault_of_every_verb_and_resource(
    alone: datetime, operator: ProvidedCluster, tmp_path: Path
) -> None:
    del alone
    results = asyncio.run(run_cells(operator.kubeconfig, CELLS, tmp_path, lanes=8))
    FAULT_MATRIX.parent.mkdir(exist_ok=True)
    FAULT_MATRIX.write_text(f"seconds until the recovery from a fault\n{table(results)}\n", "utf-8")
    assert problems(results) == ""


@pytest.mark.full
def test_a_job_succeeds_if_its_operator_is_killed_at_any_of_its_writes(
    alone: datetime, operator: ProvidedCluster, tmp_path: Path
) -> None:
    del alone
    calm, *killed = asyncio.run(run_kills(operator.kubeconfig, tmp_path, lanes=6))
    assert len(killed) == 2 * calm.writes
    assert calm.writes >= 10
    missed = [str(each) for each in killed if each.call is None]
    assert len(missed) <= MISSED, missed
    assert problems([calm, *killed]) == ""
