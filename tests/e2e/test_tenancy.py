"""An operator for two namespaces, with Roles alone: it cannot reach a third one, and none of the two stops the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.namespaces import fresh_namespace
from tests.support.e2e.queues import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.full]

SYSTEM = product.SYSTEM_NAMESPACE
SELECTOR = "app.kubernetes.io/component=operator"


@dataclass(frozen=True)
class Teams:
    """Kubectl in three namespaces, of which the operator watches two."""

    first: Kubectl
    second: Kubectl
    unwatched: Kubectl
    names: tuple[str, str, str]
    values: dict[str, Any]
    """Values of the chart."""


@pytest.fixture(scope="module")
def teams(operator: ProvidedCluster, kubectl: Kubectl) -> Iterator[Teams]:
    """The chart without any ClusterRole, for two of three namespaces."""
    with ExitStack() as stack:
        names = tuple(stack.enter_context(fresh_namespace(kubectl)) for _ in range(3))
        first, second, unwatched = (kubectl.within(name) for name in names)
        values = {
            "watchNamespaces": list(names[:2]),
            "rbac": {"clusterReads": False, "aggregateRoles": False},
            "resyncSeconds": 10,
            # Without nodes, the catalogue says which GPUs there are.
            "gpuProfiles": [{"name": "any", "product": "NVIDIA L4", "labels": {"kubernetes.io/os": "linux"}}],
        }
        product.install_chart(operator, values)
        yield Teams(first, second, unwatched, (names[0], names[1], names[2]), values)
        for room in (first, second, unwatched):
            room.run("delete", "finetunejobs", "--all", "--wait=true")
        product.install_chart(operator)


def operator_pod(kubectl: Kubectl) -> str:
    """The name of the operator's pod."""
    system = kubectl.within(SYSTEM)
    (name,) = system(
        "get", "pods", f"--selector={SELECTOR}", "--field-selector=status.phase=Running", "--output=name"
    ).split()
    return name.removeprefix("pod/")


def served(kubectl: Kubectl) -> dict[str, bool]:
    """Which namespaces the operator reads, as its metrics say."""
    path = f"/api/v1/namespaces/{SYSTEM}/pods/{operator_pod(kubectl)}:8080/proxy/metrics"
    text = kubectl("get", "--raw", path)
    found = re.findall(r'finetune_operator_namespace_served{namespace="([^"]+)"} ([01])', text)
    return {name: value == "1" for name, value in found}


def starts(room: Kubectl, name: str) -> None:
    """Create a job, and wait until the operator starts it."""
    room.apply(jobs.fine_tune_job(name))
    room("wait", f"job/{name}-prepare-0", "--for=create", "--timeout=60s")


def test_jobs_run_in_the_watched_namespaces_and_nowhere_else(teams: Teams) -> None:
    teams.unwatched.apply(jobs.fine_tune_job("beside"))
    starts(teams.first, "one")
    starts(teams.second, "two")
    beside = teams.unwatched.json("get", "finetunejob", "beside")
    assert "status" not in beside
    assert teams.unwatched.json("get", "jobs,persistentvolumeclaims,events")["items"] == []


def test_the_operator_has_no_right_outside_of_its_namespaces(kubectl: Kubectl, teams: Teams) -> None:
    account = kubectl.within(SYSTEM).json("get", "pod", operator_pod(kubectl))["spec"]["serviceAccountName"]
    identity = f"--as=system:serviceaccount:{SYSTEM}:{account}"

    def may(verb: str, resource: str, *scope: str) -> bool:
        return kubectl.run("auth", "can-i", verb, resource, identity, *scope).returncode == 0

    asked = [("list", "pods"), ("create", "jobs.batch"), ("delete", "persistentvolumeclaims")]
    asked += [("list", "finetunejobs.finetune.dev"), ("create", "events")]
    for verb, resource in asked:
        assert may(verb, resource, f"--namespace={teams.names[0]}"), (verb, resource)
        assert not may(verb, resource, f"--namespace={teams.names[2]}"), (verb, resource)
        assert not may(verb, resource, "--all-namespaces"), (verb, resource)
    for resource in ("nodes", "storageclasses.storage.k8s.io", "persistentvolumes", "namespaces", "secrets"):
        assert not may("list", resource), resource


def test_a_namespace_without_a_role_stops_no_other_and_comes_back(kubectl: Kubectl, teams: Teams) -> None:
    first, second, _ = teams.names
    assert served(kubectl) == {first: True, second: True}
    (name,) = teams.second("get", "rolebindings", "--output=name").split()
    binding = teams.second.json("get", name)
    teams.second("delete", name)
    wait_for("the refusal", seconds=60, holds=lambda: served(kubectl) == {first: True, second: False})
    teams.second.apply(jobs.fine_tune_job("later"))
    starts(teams.first, "other")
    assert teams.second.json("get", "jobs", "--selector=finetune.dev/job=later")["items"] == []
    for member in ("uid", "resourceVersion", "creationTimestamp"):
        del binding["metadata"][member]
    teams.second.apply(binding)
    teams.second("wait", "job/later-prepare-0", "--for=create", "--timeout=120s")
    assert served(kubectl) == {first: True, second: True}


def test_a_deleted_namespace_stops_no_other_and_a_new_one_is_served(
    kubectl: Kubectl, operator: ProvidedCluster, teams: Teams
) -> None:
    first, second, _ = teams.names
    pod = operator_pod(kubectl)
    kubectl("delete", "namespace", second, "--wait=true", "--timeout=120s")
    wait_for("the refusal", seconds=60, holds=lambda: served(kubectl) == {first: True, second: False})
    starts(teams.first, "last")
    assert operator_pod(kubectl) == pod
    state = kubectl.within(SYSTEM).json("get", "pod", pod)["status"]["containerStatuses"][0]
    assert state["restartCount"] == 0
    log = kubectl.within(SYSTEM)("logs", pod)
    said = [line for line in log.splitlines() if f"namespace {second} must exist" in line]
    assert len(said) == 2, "once for the missing Role and once for the missing namespace"
    kubectl("create", "namespace", second)
    product.install_chart(operator, teams.values)
    wait_for("the new namespace", seconds=120, holds=lambda: served(kubectl) == {first: True, second: True})
    assert operator_pod(kubectl) == pod
