from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from finetune_operator.api.stages import CONTROLLER_LABEL
from finetune_operator.cluster.resources import (
    Cluster,
    batch_jobs_path,
    claims_path,
    job_sets_path,
    jobs_path,
    pods_path,
)
from finetune_operator.errors import ApiError, ChildRejectedError, ConflictError
from finetune_operator.observed.projection import project_job

from tests.support.api_server import ObjectServer, serving
from tests.support.operator import UID, make_job, make_spec

JOBS = jobs_path("team")
CHILDREN = batch_jobs_path("team")


def child(name: str = "demo-train-0", owner: str = UID) -> dict[str, Any]:
    return {"kind": "Job", "metadata": {"name": name, "ownerReferences": [{"uid": owner}]}, "spec": {}}


@pytest_asyncio.fixture
async def server() -> ObjectServer:
    server = ObjectServer()
    server.put(JOBS, {"metadata": {"name": "demo", "namespace": "team", "uid": UID}, "spec": make_spec()})
    return server


@pytest_asyncio.fixture
async def cluster(server: ObjectServer) -> AsyncIterator[Cluster]:
    async with serving(server) as api:
        yield Cluster(api)


def test_paths_name_one_namespace_or_all_of_them() -> None:
    assert JOBS == "/apis/finetune.dev/v1alpha1/namespaces/team/finetunejobs"
    assert jobs_path() == "/apis/finetune.dev/v1alpha1/finetunejobs"
    assert pods_path() == "/api/v1/pods"


async def test_a_status_is_never_written_over_a_newer_object(cluster: Cluster, server: ObjectServer) -> None:
    job = project_job(server.objects[f"{JOBS}/demo"])
    stored = await cluster.write_status(job, {"phase": "Training"})
    assert stored["status"] == {"phase": "Training"}
    with pytest.raises(ConflictError):
        await cluster.write_status(job, {"phase": "Preparing"})
    assert server.objects[f"{JOBS}/demo"]["status"] == {"phase": "Training"}


async def test_an_existing_child_is_returned_to_its_owner_only(cluster: Cluster) -> None:
    job = make_job()
    created = await cluster.create_child(CHILDREN, job, child())
    assert await cluster.create_child(CHILDREN, job, child()) == created
    with pytest.raises(ChildRejectedError, match="must belong to this FineTuneJob"):
        await cluster.create_child(CHILDREN, make_job(uid="another"), child())


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_a_child_that_the_api_server_rejects_is_named(
    cluster: Cluster, server: ObjectServer, status: int
) -> None:
    server.failures["POST", CHILDREN] = status
    with pytest.raises(ChildRejectedError, match="Job demo-train-0"):
        await cluster.create_child(CHILDREN, make_job(), child())


async def test_an_unexpected_failure_of_a_create_is_no_rejection(
    cluster: Cluster, server: ObjectServer
) -> None:
    server.failures["POST", CHILDREN] = 401
    with pytest.raises(ApiError):
        await cluster.create_child(CHILDREN, make_job(), child())


async def test_suspending_is_for_one_uid_only(cluster: Cluster, server: ObjectServer) -> None:
    created = server.put(CHILDREN, child())
    uid = created["metadata"]["uid"]
    held = await cluster.suspend_job("team", "demo-train-0", uid, suspend=True)
    assert held["spec"] == {"suspend": True}
    version = created["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError):
        # Somebody else may have suspended it since.
        await cluster.suspend_job("team", "demo-train-0", uid, suspend=False, resource_version=version)
    for name, wrong in (("demo-train-0", "another"), ("none", uid)):
        with pytest.raises(ConflictError):
            await cluster.suspend_job("team", name, wrong, suspend=False)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, ConflictError), (409, ConflictError), (403, ChildRejectedError), (401, ApiError)],
)
async def test_a_claim_that_cannot_be_enlarged_says_whether_to_try_again(
    cluster: Cluster, server: ObjectServer, status: int, error: type[Exception]
) -> None:
    server.failures["PATCH", f"{claims_path('team')}/demo-workspace"] = status
    with pytest.raises(error):
        await cluster.expand_claim("team", "demo-workspace", "uid", "30Gi")


async def test_deleting_a_replaced_object_is_a_conflict_and_a_deleted_one_no_error(
    cluster: Cluster, server: ObjectServer
) -> None:
    server.put(CHILDREN, child())
    with pytest.raises(ConflictError):
        await cluster.delete(f"{CHILDREN}/demo-train-0", "another")
    assert server.named("demo-train-0") is not None
    assert not await cluster.delete(f"{CHILDREN}/none", "uid")
    held = server.named("demo-train-0")
    assert held is not None
    assert await cluster.delete(f"{CHILDREN}/demo-train-0", held["metadata"]["uid"])


async def test_children_and_pods_without_their_labels_are_read_by_name_and_controller(
    cluster: Cluster, server: ObjectServer
) -> None:
    labels = {"finetune.dev/job": "demo"}
    listed, hidden = child("demo-train-1"), child("demo-train-0")
    listed["metadata"]["labels"] = labels
    listed, hidden = server.put(CHILDREN, listed), server.put(CHILDREN, hidden)
    uid = hidden["metadata"]["uid"]
    for name, found in (
        ("a", labels),
        ("b", {CONTROLLER_LABEL: uid}),
        ("c", {CONTROLLER_LABEL: "gone"}),
        ("d", {CONTROLLER_LABEL: "a stranger"}),
    ):
        server.put(pods_path("team"), {"metadata": {"name": name, "labels": found}})
    jobs, pods = await cluster.read_children(("team", "demo"), {"demo-train-0", "none"}, {"gone"})
    assert [body["metadata"]["name"] for body in jobs.items] == ["demo-train-1", "demo-train-0"]
    assert [body["metadata"]["name"] for body in pods.items] == ["a", "b", "c"]
    assert await cluster.read_job(("team", "demo")) is not None
    assert await cluster.read_job(("team", "none")) is None


async def test_job_sets_are_read_beside_jobs_with_the_version_of_the_older_list(
    cluster: Cluster, server: ObjectServer
) -> None:
    server.failures["GET", "/apis/jobset.x-k8s.io/v1alpha2"] = 404
    assert not await cluster.find_job_sets()
    del server.failures["GET", "/apis/jobset.x-k8s.io/v1alpha2"]
    server.objects["/apis/jobset.x-k8s.io/v1alpha2"] = {"metadata": {"name": ""}}
    assert await cluster.find_job_sets()
    labels = {"finetune.dev/job": "demo"}
    plain, hidden = child("demo-prepare-0"), {**child(), "kind": "JobSet"}
    plain["metadata"]["labels"] = labels
    server.put(CHILDREN, plain)
    uid = server.put(job_sets_path("team"), hidden)["metadata"]["uid"]
    server.put(
        pods_path("team"), {"metadata": {"name": "a", "labels": {"jobset.sigs.k8s.io/jobset-uid": uid}}}
    )
    jobs, pods = await cluster.read_children(("team", "demo"), {"demo-train-0"}, set())
    assert [body["metadata"]["name"] for body in jobs.items] == ["demo-prepare-0", "demo-train-0"]
    assert [body["metadata"]["name"] for body in pods.items] == ["a"]


async def test_a_job_set_is_suspended_where_it_is(cluster: Cluster, server: ObjectServer) -> None:
    uid = server.put(job_sets_path("team"), {**child(), "kind": "JobSet"})["metadata"]["uid"]
    with pytest.raises(ConflictError, match="Job team/demo-train-0"):
        await cluster.suspend_job("team", "demo-train-0", uid, suspend=True)
    found = await cluster.suspend_job("team", "demo-train-0", uid, suspend=True, kind="JobSet")
    assert found["spec"]["suspend"] is True


async def test_a_child_of_an_earlier_job_of_the_same_name_is_a_conflict_and_no_rejection(
    cluster: Cluster, server: ObjectServer
) -> None:
    earlier = child()
    earlier["metadata"]["ownerReferences"] = [{"kind": "FineTuneJob", "name": "demo", "uid": "earlier"}]
    server.put(CHILDREN, earlier)
    with pytest.raises(ConflictError, match="previous FineTuneJob"):
        await cluster.create_child(CHILDREN, make_job(), child())


async def test_a_missing_claim_is_none_and_a_forbidden_one_an_error(
    cluster: Cluster, server: ObjectServer
) -> None:
    assert await cluster.read_claim("team", "none") is None
    server.failures["GET", f"{claims_path('team')}/none"] = 403
    with pytest.raises(ApiError):
        await cluster.read_claim("team", "none")
