"""A real Argo CD runs FineTuneJobs from Git: it knows their health, and nothing that it does trains twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e import argo_cd, jobs
from tests.support.e2e.argo_cd import ArgoCd
from tests.support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.full]

TESTDATA = ROOT / "gitops/argocd/resource_customizations/finetune.dev/FineTuneJob"


@pytest.fixture(scope="module")
def argo(workplace: Kubectl, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoCd]:
    """An Argo CD whose only application is a folder of jobs in the shared namespace."""
    assert workplace.namespace is not None
    with argo_cd.running(kubectl, tmp_path_factory.mktemp("argo-cd")) as running:
        running.create(workplace.namespace)
        yield running


def managed_parts(job: dict[str, Any]) -> dict[str, set[str]]:
    """The parts of a job that each field manager owns: `spec`, `metadata`, `status`."""
    return {
        entry["manager"]: {part.removeprefix("f:") for part in entry["fieldsV1"]}
        for entry in job["metadata"]["managedFields"]
    }


def trainings(job: dict[str, Any]) -> int:
    return sum(attempt["stage"] == "Train" for attempt in job["status"].get("attempts", []))


def test_git_and_argo_cd_run_a_job_once_whatever_they_do(argo: ArgoCd, workplace: Kubectl) -> None:
    document = jobs.fine_tune_job("from-git")
    revision = argo.repository.commit({"from-git": document})
    argo.refresh()
    argo.until(
        "a progressing application",
        lambda found: found.get("status", {}).get("health", {}).get("status") == "Progressing",
    )
    argo.until_synced(revision, "Healthy")
    job = workplace.json("get", "finetunejob", "from-git", "--show-managed-fields")
    assert trainings(job) == 1
    uid = job["metadata"]["uid"]
    parts = managed_parts(job)
    assert parts["finetune-operator"] == {"status"}
    assert parts["argocd-controller"] <= {"spec", "metadata"}

    # A forced replacement, and a refresh without the cache.
    for options in (("Replace=true",), ("ServerSideApply=true",)):
        argo.sync(*options)
        argo.until("the end of a sync", lambda found: "operation" not in found)
        argo.until_synced(revision, "Healthy")
    job = workplace.json("get", "finetunejob", "from-git")
    assert (job["metadata"]["uid"], trainings(job)) == (uid, 1)

    # Somebody deletes it: Argo CD heals, and the published artifact is found.
    workplace("delete", "finetunejob", "from-git", "--wait=true")
    argo.refresh()
    argo.until_synced(revision, "Healthy")
    job = jobs.until(
        workplace, "from-git", "its end", seconds=60,
        holds=lambda found: product.condition(found, "Succeeded")["status"] == "True",
    )  # fmt: skip
    assert job["metadata"]["uid"] != uid
    assert trainings(job) == 0

    # An edit of the spec is refused, and the sync says why.
    edited = jobs.fine_tune_job("from-git", evaluation={"maximumRows": 2})
    argo.repository.commit({"from-git": edited})
    argo.refresh()
    failed = argo.until(
        "a sync that fails",
        lambda found: found.get("status", {}).get("operationState", {}).get("phase") == "Failed",
    )
    assert "spec" in str(failed["status"]["operationState"]["syncResult"]["resources"])
    same = workplace.json("get", "finetunejob", "from-git")
    assert same["metadata"]["uid"] == job["metadata"]["uid"]

    # Git removes it, and later has it again.
    revision = argo.repository.commit({"from-git": None})
    argo.until_synced(revision, "Healthy")
    assert workplace.run("get", "finetunejob", "from-git").returncode != 0
    revision = argo.repository.commit({"from-git": document})
    argo.until_synced(revision, "Healthy")
    job = workplace.json("get", "finetunejob", "from-git")
    assert trainings(job) == 0
    argo.until_synced(argo.repository.commit({"from-git": None}), "Healthy")


def test_a_failed_job_degrades_the_application_and_its_retry_stays(
    argo: ArgoCd, workplace: Kubectl, tmp_path: Path
) -> None:
    workplace.apply(jobs.config_map("late-rows", "not json\n"))
    document = jobs.fine_tune_job(
        "from-git-bad", dataset={"configMap": {"name": "late-rows", "key": "data.jsonl"}}
    )
    revision = argo.repository.commit({"from-git-bad": document})
    argo.until_synced(revision, "Degraded")
    failed = workplace.json("get", "finetunejob", "from-git-bad")
    health = argo_cd.evaluate("health", failed, tmp_path)
    assert "STATUS: Degraded" in health
    assert product.condition(failed, "Succeeded")["reason"] in health

    # The cause is gone. Argo CD's own Lua makes the retry, as its server would.
    workplace.apply(jobs.config_map("late-rows", jobs.jsonl(jobs.conversations(24))))
    printed = argo_cd.evaluate("run-action", failed, tmp_path, "retry")
    retry = argo_cd.created_by(printed)
    workplace.apply(retry)
    name = retry["metadata"]["name"]
    ended = product.follow(workplace, name, seconds=300)
    assert product.condition(ended, "Succeeded")["status"] == "True", ended["status"]
    # Argo CD neither prunes the retry nor takes it for a part of the sync, and it goes with the failed job.
    argo.until_synced(revision, "Degraded")
    workplace.json("get", "finetunejob", name)
    argo.until_synced(argo.repository.commit({"from-git-bad": None}), "Healthy")
    workplace("wait", "--for=delete", f"finetunejob/{name}", "--timeout=60s")


@pytest.mark.parametrize("name", ["new", "training", "queued", "suspended", "does_not_fit", "succeeded"])
def test_argo_cds_own_lua_gives_the_health_that_the_layout_expects(name: str, tmp_path: Path) -> None:
    cases = yaml.safe_load((TESTDATA / "health_test.yaml").read_text())["tests"]
    (expected,) = [case["healthStatus"] for case in cases if case["inputPath"] == f"testdata/{name}.yaml"]
    job = yaml.safe_load((TESTDATA / "testdata" / f"{name}.yaml").read_text())
    printed = argo_cd.evaluate("health", job, tmp_path)
    assert f"STATUS: {expected['status']}" in printed
    assert f"MESSAGE: {expected['message']}" in printed
