"""A job that cannot succeed fails soon, after one attempt, with a specific reason, and leaves no pod."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Case:
    """A job that must fail: its input, the reason, and the required parts of the message."""

    name: str
    reason: str
    names: tuple[str, ...]
    data: str | None = None
    url: str | None = None
    model_path: str = "models/tiny"
    dataset: dict[str, Any] | None = None
    spec: dict[str, Any] = field(default_factory=dict)


def _rows_without_answer() -> str:
    rows = jobs.conversations(20)
    for index in (4, 11):
        rows[index]["messages"] = rows[index]["messages"][:1]
    return jobs.jsonl(rows)


def _broken_line() -> str:
    lines = jobs.jsonl(jobs.conversations(20)).splitlines()
    lines[6] = lines[6][:30]
    return "\n".join(lines) + "\n"


CASES = [
    Case("no-answer", "InvalidDataset", ("5", "12", "NoAssistantTurn"), data=_rows_without_answer()),
    Case("broken-line", "MalformedDataset", ("7", "InvalidJson"), data=_broken_line()),
    Case("unreachable", "DatasetUnavailable", ("attempts in 3 s",), url="https://data.invalid/a.jsonl?sig=S3CRETQUERY",
         spec={"network": {"retrySeconds": 3}, "lifecycle": {"retries": 0}}),
    Case("broken-bundle", "InvalidNetworkSettings", ("no certificate",), data=jobs.jsonl(jobs.conversations(20)),
         spec={"network": {"caBundle": {"configMapKeyRef": {"name": "broken-bundle", "key": "data.jsonl"}}}}),
    Case("absent-bundle", "InvalidNetworkSettings", ("its key is missing",), data=jobs.jsonl(jobs.conversations(20)),
         spec={"network": {"caBundle": {"secretKeyRef": {"name": "absent", "key": "ca.crt"}}}}),
    Case("metadata-service", "DatasetAddressForbidden", (), url="https://169.254.169.254/a?sig=S3CRETQUERY"),
    Case("not-a-model", "InvalidModel", ("config.json",), data=jobs.jsonl(jobs.conversations(20)),
         model_path="models/not-a-model"),
    Case("no-model", "ModelNotFound", ("models/absent",), data=jobs.jsonl(jobs.conversations(20)),
         model_path="models/absent"),
    Case("no-file", "DatasetNotFound", ("absent.jsonl",),
         dataset={"persistentVolumeClaim": {"claimName": jobs.CLAIM, "path": "absent.jsonl"}}),
]  # fmt: skip
# A minute for each job; all run at once and share the machine.
SECONDS = 60 * len(CASES)


def manifests(case: Case) -> list[dict[str, Any]]:
    """Return the case's job and the object that has its data or URL."""
    dataset = case.dataset
    sources: list[dict[str, Any]] = []
    if case.data is not None:
        sources = [jobs.config_map(case.name, case.data)]
        dataset = {"configMap": {"name": case.name, "key": "data.jsonl"}}
    if case.url is not None:
        sources = [jobs.secret(case.name, {"url": case.url})]
        dataset = {"url": {"secretKeyRef": {"name": case.name, "key": "url"}}}
    model = {"source": {"persistentVolumeClaim": {"claimName": jobs.CLAIM, "path": case.model_path}}}
    return [*sources, jobs.fine_tune_job(case.name, dataset=dataset, model=model, **case.spec)]


@pytest.fixture(scope="module")
def place(workplace: Kubectl) -> Iterator[Kubectl]:
    """The shared namespace, in which the jobs of all cases run side by side."""
    workplace.apply(*(document for case in CASES for document in manifests(case)))
    yield workplace
    workplace("delete", "finetunejobs", "--all", "--wait=true")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_for_its_own_reason_and_nothing_is_left(case: Case, place: Kubectl) -> None:
    job = product.follow(place, case.name, seconds=SECONDS)

    succeeded = product.condition(job, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", case.reason), succeeded
    for word in case.names:
        assert word in succeeded["message"]
    attempts = job["status"]["attempts"]
    assert [(a["stage"], a["attempt"], a["reason"]) for a in attempts] == [("Prepare", 0, case.reason)]
    assert_no_pod_is_left(place, case.name)
    everything = place("get", "finetunejobs,jobs,pods,events", "--output=yaml")
    assert "S3CRETQUERY" not in everything


def assert_no_pod_is_left(kubectl: Kubectl, name: str) -> None:
    """Wait until the job's pods are deleted, within seconds of its end."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        pods = jobs.all_pods(kubectl, name)
        if not pods:
            return
        time.sleep(0.2)
    pytest.fail(f"all pods must be deleted, found {[pod['metadata']['name'] for pod in pods]}")
