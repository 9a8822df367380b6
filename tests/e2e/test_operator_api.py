"""The operator's calls to a real API server: apply, adoption, preconditions, paging, Lease."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from devcluster.kubectl import Kubectl
from devcluster.layout import REPOSITORY
from devcluster.provider import ProvidedCluster
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.cluster.client import ApiClient, load_configuration
from finetune_operator.cluster.ended_jobs import ENDED, UNFINISHED, cannot_select
from finetune_operator.cluster.event_writer import EventWriter
from finetune_operator.cluster.fence import Fence
from finetune_operator.cluster.leader_election import Elector
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.cluster.resources import Cluster, batch_jobs_path, claims_path, jobs_path
from finetune_operator.errors import ApiError, ChildRejectedError, ConflictError
from finetune_operator.manifests.jobs import build_job, build_workspace_claim
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.projection import project_job
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds
from finetune_operator.status.events import Transition

from tests.support.e2e.crds import await_established

pytestmark = pytest.mark.cluster

# Suspended from the start, so that an operator from another test creates nothing for it.
SPEC: dict[str, Any] = {
    "model": {"source": {"persistentVolumeClaim": {"claimName": "models"}}},
    "dataset": {"source": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
    "output": {"destination": {"persistentVolumeClaim": {"claimName": "artifacts"}}},
    "suspend": True,
}
TRAINER = TrainerSettings(image="registry.example/none:1")
HOST = HostNeeds("1", 2**30, "any size will do", 0, 2**30)


@pytest_asyncio.fixture
async def api(cluster: ProvidedCluster) -> AsyncIterator[ApiClient]:
    """A client with the administrator's credentials and a high rate limit."""
    configuration = await load_configuration({"KUBECONFIG": str(cluster.kubeconfig)})
    client = ApiClient(configuration, TokenBucket(1000, 1000, time.monotonic), lambda _method, _code: None)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def job(api: ApiClient, kubectl: Kubectl, namespace: str) -> JobRecord:
    """A suspended FineTuneJob."""
    kubectl("apply", "-f", str(REPOSITORY / "crds" / "finetunejobs.yaml"))
    await_established(kubectl)
    return project_job(await api.call("POST", jobs_path(namespace), body=make_body(namespace)))


def make_body(namespace: str) -> dict[str, Any]:
    """Return the FineTuneJob in a user's form."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "demo", "namespace": namespace},
        "spec": SPEC,
    }


def batch_job(job: JobRecord, attempt: int = 0) -> dict[str, Any]:
    """Return a stage's Job that is suspended, so that it creates no pod."""
    spec = FineTuneJobSpec.parse(SPEC)
    body = build_job(job, spec, Stage.PREPARE, attempt, {"version": "1.0"}, TRAINER, host=HOST)
    body["spec"]["suspend"] = True
    # An operator from another test would delete it.
    del body["metadata"]["labels"]["finetune.dev/job"]
    return body


async def test_status_is_applied_whole_and_never_over_a_change_or_a_namesake(
    api: ApiClient, job: JobRecord
) -> None:
    cluster = Cluster(api)
    path = f"{jobs_path(job.namespace)}/{job.name}"
    stored: dict[str, Any] = {}
    for _ in range(20):
        current = project_job(await api.call("GET", path))
        try:
            stored = await cluster.write_status(
                current, {"phase": "Training", "specHash": "sha256:" + "0" * 64}
            )
            break
        except ConflictError:
            # An operator from another test wrote in between; read again, as the controller would.
            continue
    assert stored["status"]["phase"] == "Training"
    with pytest.raises(ConflictError):
        await cluster.write_status(job, {"phase": "Merging"})
    latest = project_job(await api.call("GET", path))
    with pytest.raises(ConflictError):
        await cluster.write_status(replace(latest, name="gone"), {"phase": "Merging"})
    await cluster.delete(path, job.uid)
    await api.call("POST", jobs_path(job.namespace), body=make_body(job.namespace))
    with pytest.raises(ConflictError):
        await cluster.write_status(latest, {"phase": "Merging"})


async def test_a_child_is_created_once_adopted_by_its_owner_and_refused_to_a_stranger(
    api: ApiClient, job: JobRecord
) -> None:
    cluster, path = Cluster(api), batch_jobs_path(job.namespace)
    created = await cluster.create_child(path, job, batch_job(job, 7))
    again = await cluster.create_child(path, job, batch_job(job, 7))
    assert again["metadata"]["uid"] == created["metadata"]["uid"]
    stranger = replace(job, uid="00000000-0000-0000-0000-000000000000")
    with pytest.raises(ConflictError, match="previous FineTuneJob"):
        await cluster.create_child(path, stranger, batch_job(stranger, 7))


async def test_quota_and_invalid_objects_are_refusals_in_the_servers_words(
    api: ApiClient, job: JobRecord, kubectl: Kubectl
) -> None:
    cluster = Cluster(api)
    kubectl.within(job.namespace)("create", "quota", "none", "--hard=persistentvolumeclaims=0")
    claim = build_workspace_claim(job, FineTuneJobSpec.parse(SPEC), "1Gi")
    kubectl.within(job.namespace)(
        "wait", "--for=jsonpath={.status.hard.persistentvolumeclaims}=0", "quota/none", "--timeout=30s"
    )
    with pytest.raises(ChildRejectedError, match="quota") as caught:
        await cluster.create_child(claims_path(job.namespace), job, claim)
    assert (caught.value.final, caught.value.kind) == (False, "PersistentVolumeClaim/Quota")
    assert await cluster.rehearse(job, claim) is None, "a quota can change until the claim is created"
    invalid = batch_job(job, 8)
    invalid["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"memory": "lots"}}
    with pytest.raises(ChildRejectedError) as caught:
        await cluster.create_child(batch_jobs_path(job.namespace), job, invalid)
    assert caught.value.final
    assert await cluster.rehearse(job, invalid) == str(caught.value)
    assert await cluster.rehearse(job, batch_job(job, 8)) is None
    assert batch_job(job, 8)["metadata"]["name"] not in kubectl.within(job.namespace)("get", "jobs")


async def test_deletes_and_suspensions_are_for_one_uid_only(api: ApiClient, job: JobRecord) -> None:
    cluster, path = Cluster(api), batch_jobs_path(job.namespace)
    body = await cluster.create_child(path, job, batch_job(job, 9))
    name, uid = body["metadata"]["name"], body["metadata"]["uid"]
    other = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(ConflictError):
        await cluster.delete(f"{path}/{name}", other)
    assert (await api.call("GET", f"{path}/{name}"))["metadata"]["uid"] == uid
    with pytest.raises(ConflictError):
        await cluster.suspend_job(job.namespace, name, other, suspend=False)
    assert (await cluster.suspend_job(job.namespace, name, uid, suspend=True))["spec"]["suspend"] is True
    await cluster.delete(f"{path}/{name}", uid)
    await cluster.delete(f"{path}/{name}", uid)
    with pytest.raises(ApiError, match="404"):
        await api.call("GET", f"{path}/{name}")


async def test_a_list_is_read_in_pages(api: ApiClient, job: JobRecord) -> None:
    cluster, path = Cluster(api), batch_jobs_path(job.namespace)
    for attempt in range(20, 25):
        await cluster.create_child(path, job, batch_job(job, attempt))
    listed = await api.list_all(
        path, lambda body: body["metadata"]["name"], labels="finetune.dev/stage=prepare", page=2
    )
    assert {f"demo-prepare-{attempt}" for attempt in range(20, 25)} <= set(listed.items)
    assert listed.resource_version > 0


async def test_jobs_that_have_ended_are_listed_apart_from_all_others(
    api: ApiClient, job: JobRecord, kubectl: Kubectl
) -> None:
    ended = {**make_body(job.namespace), "metadata": {"name": "ended"}}
    await api.call("POST", jobs_path(job.namespace), body=ended)
    patch = json.dumps({"status": {"completionTime": "2026-11-24T09:00:00Z"}})
    kubectl.within(job.namespace)(
        "patch", "ftj", "ended", "--subresource=status", "--type=merge", "-p", patch
    )
    names = {}
    for fields in (UNFINISHED, ENDED):
        listed = await Cluster(api).list_jobs(
            job.namespace, lambda body: body["metadata"]["name"], fields=fields, share=0.5
        )
        names[fields] = listed.items
    assert names == {UNFINISHED: ["demo"], ENDED: ["ended"]}
    with pytest.raises(ApiError) as caught:
        await Cluster(api).list_jobs(job.namespace, dict, fields="status.startTime=")
    assert cannot_select(caught.value), "this is how a field looks that the CRD does not let select"


class EventOutcomes:
    """Waits for what happens to Events."""

    def __init__(self) -> None:
        self.outcomes: asyncio.Queue[str] = asyncio.Queue()

    def events(self, outcome: str, number: int) -> None:
        del number
        self.outcomes.put_nowait(outcome)


async def test_an_event_is_told_about_the_job(api: ApiClient, job: JobRecord, kubectl: Kubectl) -> None:
    transition = Transition("Warning", "InvalidDataset", "row 3 must have an answer")
    metrics = EventOutcomes()
    writer = EventWriter(api, "test", metrics, lambda: datetime.now(UTC), time.monotonic, lambda *_: True)
    writing = asyncio.create_task(writer.run())
    for _ in range(2):
        writer.record(job, transition)
        assert await asyncio.wait_for(metrics.outcomes.get(), 30) == "written"
    writing.cancel()
    await asyncio.wait({writing})
    # The operator of the cluster tells this job's Events, too.
    selector = f"--field-selector=involvedObject.uid={job.uid},reason={transition.reason}"
    (told,) = kubectl.within(job.namespace).json("get", "events", selector)["items"]
    assert (told["message"], told["count"]) == (transition.message, 2)


async def test_the_lease_has_one_holder_and_goes_over_when_it_is_released(
    api: ApiClient, namespace: str
) -> None:
    first, second = (
        Elector(api, namespace, "operator", name, time.monotonic, Fence(time.monotonic))
        for name in ("a", "b")
    )
    await first.acquire()
    assert not await second._try()
    assert await first._try()
    await first.release()
    await second.acquire()
    assert not await first._try()
