"""The chart's whole life with the real helm, while a job runs: test, upgrade, rollback, removal, installation."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.layout import tool
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster

Helm = Callable[..., str]


@pytest.fixture
def helm(operator: ProvidedCluster) -> Iterator[Helm]:
    """Run helm on the release; the chart is installed with the tests' values again at the end."""
    environment = {**os.environ, "KUBECONFIG": str(operator.kubeconfig)}

    def run(command: str, *arguments: str) -> str:
        done = subprocess.run(
            [
                str(tool("helm")),
                command,
                product.RELEASE,
                *arguments,
                f"--namespace={product.SYSTEM_NAMESPACE}",
            ],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, f"helm {command}: {done.stderr}"
        return done.stdout

    yield run
    # A test pod that has failed stays for its log, and would be in the way of other tests.
    pods = Kubectl(operator.kubeconfig).within(product.SYSTEM_NAMESPACE)
    pods("delete", "pod", "--selector=app.kubernetes.io/component=test", "--ignore-not-found")
    product.install_chart(operator)


def test_a_job_outlives_every_step_of_the_charts_life(
    helm: Helm, operator: ProvidedCluster, room: Kubectl
) -> None:
    system = room.within(product.SYSTEM_NAMESPACE)

    def first_job() -> str:
        return str(room.json("get", "job", "chart-life-prepare-0")["metadata"]["uid"])

    def settings() -> str:
        (found,) = (
            body["data"]["settings.json"]
            for body in system.json("get", "configmaps")["items"]
            if body["metadata"]["name"].endswith("-settings")
        )
        return str(found)

    def revision() -> str:
        return str(json.loads(helm("status", "--output=json"))["version"])

    assert "Phase:          Succeeded" in helm("test")

    # No node can run PREPARE, so the job stays in it.
    room.apply(jobs.fine_tune_job("chart-life", resources={"prepare": {"cpu": "1000"}}))
    jobs.until(
        room, "chart-life", "its first Job", seconds=60,
        holds=lambda job: job.get("status", {}).get("stage", {}).get("name") == "Prepare",
    )  # fmt: skip
    uid, before = first_job(), revision()

    product.install_chart(operator, {"logLevel": "DEBUG"})
    assert '"logLevel": "DEBUG"' in settings()
    helm("rollback", before, "--wait", "--timeout=120s")
    assert '"logLevel": "INFO"' in settings()
    assert first_job() == uid

    helm("uninstall", "--wait", "--timeout=120s")
    assert (
        system.json(
            "get", "deployments,services,configmaps", "--selector=app.kubernetes.io/part-of=finetune"
        )["items"]
        == []
    )
    assert room.json("get", "finetunejob", "chart-life")["status"]["stage"]["name"] == "Prepare"
    assert first_job() == uid

    product.install_chart(operator)
    room("patch", "finetunejob", "chart-life", "--type=merge", '--patch={"spec":{"suspend":true}}')

    def is_suspended(job: dict[str, Any]) -> bool:
        return bool(product.condition(job, "Suspended")["status"] == "True")

    jobs.until(room, "chart-life", "the new release's work", seconds=60, holds=is_suspended)
