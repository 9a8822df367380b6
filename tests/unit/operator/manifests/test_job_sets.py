from __future__ import annotations

import copy
from typing import Any

import pytest
from finetune_operator.manifests.job_sets import as_job_set
from finetune_operator.observed.ownership import key_of
from finetune_operator.observed.projection import project_child, project_pod

from tests.support.operator import UID

CREATED = "2026-11-24T09:00:00Z"
JOB: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {
        "name": "demo-train-0",
        "namespace": "team",
        "labels": {"finetune.dev/job": "demo"},
        "annotations": {"finetune.dev/placement": "digest"},
        "ownerReferences": [{"kind": "FineTuneJob", "name": "demo", "uid": UID, "controller": True}],
    },
    "spec": {
        "parallelism": 2,
        "completions": 2,
        "completionMode": "Indexed",
        "template": {
            "metadata": {"labels": {"finetune.dev/job": "demo"}},
            "spec": {"containers": [{"name": "trainer", "image": "trainer:1"}]},
        },
    },
}


def stored(body: dict[str, Any], *conditions: dict[str, str], **spec: Any) -> dict[str, Any]:
    """The body as the API server returns it."""
    body = copy.deepcopy(body)
    body["metadata"] |= {"uid": "set", "resourceVersion": "7", "creationTimestamp": CREATED}
    body["spec"] |= spec
    body["status"] = {"conditions": list(conditions)}
    return body


def condition(kind: str, status: str = "True", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "message": message, "lastTransitionTime": "2026-11-24T10:00:00Z"}


def test_a_job_set_has_one_job_which_has_the_pods() -> None:
    body = as_job_set(JOB)
    assert (body["kind"], body["metadata"]) == ("JobSet", JOB["metadata"])
    (member,) = body["spec"]["replicatedJobs"]
    assert (member["replicas"], member["template"]) == (1, {"spec": JOB["spec"]})
    assert "suspend" not in body["spec"]


def test_a_queue_suspends_the_job_set_and_not_the_job_inside() -> None:
    queued = {**JOB, "spec": {**JOB["spec"], "suspend": True}}
    body = as_job_set(queued)
    assert body["spec"]["suspend"] is True
    assert "suspend" not in body["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert queued["spec"]["suspend"] is True


def test_a_job_set_is_read_as_the_job_that_it_was_made_from() -> None:
    of_job, of_set = (project_child(stored(body)) for body in (JOB, as_job_set(JOB)))
    assert of_job is not None
    assert of_set is not None
    assert (of_job.kind, of_set.kind) == ("Job", "JobSet")
    same = ("name", "owner_uid", "stage", "attempt", "pods", "image", "placement", "suspended", "finished")
    assert [getattr(of_set, name) for name in same] == [getattr(of_job, name) for name in same]
    assert of_set.pods == 2


@pytest.mark.parametrize(
    ("conditions", "finished", "failure"),
    [
        ([], False, None),
        ([condition("Completed")], True, None),
        ([condition("Failed", message="jobset failed")], True, "jobset failed"),
        ([condition("StartupPolicyCompleted")], False, None),
    ],
)
def test_a_job_set_ends_by_its_conditions(
    conditions: list[dict[str, str]],
    finished: bool,  # noqa: FBT001 -- a parameter of the table
    failure: str | None,
) -> None:
    child = project_child(stored(as_job_set(JOB), *conditions))
    assert child is not None
    assert (child.finished, child.failure) == (finished, failure)


def test_a_resumed_job_set_starts_anew() -> None:
    child = project_child(stored(as_job_set(JOB), condition("Suspended", "False")))
    assert child is not None
    assert child.resumed is not None
    assert child.started == child.resumed


def pod(owner: str, **labels: str) -> dict[str, Any]:
    references = [{"kind": "Job", "name": owner, "uid": "inner", "controller": True}] if owner else []
    return {
        "metadata": {
            "name": "p",
            "namespace": "team",
            "uid": "u",
            "resourceVersion": "1",
            "creationTimestamp": CREATED,
            "ownerReferences": references,
            "labels": {"finetune.dev/job": "other", **labels},
        },
        "spec": {},
    }


@pytest.mark.parametrize(
    ("owner", "labels", "owner_uid", "name"),
    [
        ("demo-train-0-r-0", {"jobset.sigs.k8s.io/jobset-uid": "set"}, "set", "demo"),
        # Somebody has removed the label. The Job's name still says whose pod it is.
        ("demo-train-0-r-0", {}, "inner", "demo"),
        # Somebody has put it on the pod of a plain Job.
        ("demo-train-0", {"jobset.sigs.k8s.io/jobset-uid": "set"}, "inner", "demo"),
        # Somebody has deleted the Job, and left its pods.
        (
            "",
            {"jobset.sigs.k8s.io/jobset-uid": "set", "batch.kubernetes.io/controller-uid": "inner"},
            "set",
            "other",
        ),
    ],
)
def test_a_pod_of_a_job_set_belongs_to_it(
    owner: str, labels: dict[str, str], owner_uid: str, name: str
) -> None:
    body = pod(owner, **labels)
    found = project_pod(body)
    assert found is not None
    assert found.owner_uid == owner_uid
    assert key_of(body) == ("team", name)
