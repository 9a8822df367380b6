from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import JOB_LABEL
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.resources import Cluster, batch_jobs_path, claims_path, jobs_path, pods_path
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.workqueue import WorkQueue
from finetune_operator.errors import ApiError, ConflictError
from finetune_operator.lifecycle.actions import Decision, DeleteClaim, DeleteJob, DeletePod
from finetune_operator.lifecycle.decide import decide
from finetune_operator.lifecycle.steps.unwatched import REREAD
from finetune_operator.observed.observation import Key
from finetune_operator.runtime import controller as controller_module
from finetune_operator.runtime.controller import CONFLICT_DELAY, Controller
from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.status.events import Transition
from prometheus_client import CollectorRegistry

from tests.support.api_server import ObjectServer, serving
from tests.support.clock import Clock
from tests.support.operator import NOW, SETTINGS, UID, make_node, make_spec

KEY = ("team", "demo")
JOBS, CHILDREN, CLAIMS = jobs_path("team"), batch_jobs_path("team"), claims_path("team")
CHILD = f"{CHILDREN}/demo-prepare-0"


class Metrics(OperatorMetrics):
    """Records the results of reconciles and signals each of them."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry())
        self.results: list[str] = []
        self.changed = asyncio.Event()

    def reconciled(self, result: str, seconds: float) -> None:
        super().reconciled(result, seconds)
        self.results.append(result)
        self.changed.set()


class Parts:
    """A controller of one FineTuneJob and everything around it."""

    def __init__(self, server: ObjectServer, cluster: Cluster) -> None:
        self.server = server
        self.now: datetime = NOW
        self.metrics = Metrics()
        gpus = GpuStore((), allow_time_slicing=False)
        gpus.put(make_node())
        self.clock = Clock()
        self.events: list[Transition] = []
        self.forgotten: list[Key] = []
        self.store = Store(gpus)
        self.queue: WorkQueue[Key] = WorkQueue(self.metrics, self.clock)
        self.informer = Informer(self.store, gpus, self.queue, cluster, "")
        self.controller = Controller(
            store=self.store,
            queue=self.queue,
            cluster=cluster,
            informer=self.informer,
            settings=SETTINGS,
            metrics=self.metrics,
            record_event=lambda _, event: self.events.append(event),
            forget_events=self.forgotten.append,
            now=lambda: self.now,
            clock=self.clock,
        )
        body = {"metadata": {"name": "demo", "namespace": "team", "uid": UID}, "spec": make_spec()}
        self.informer.put_job(server.put(JOBS, body))

    def writes(self) -> list[tuple[str, str]]:
        """Method and path of every write."""
        return [(method, path) for method, path in self.server.requests if method != "GET"]

    async def work_once(self) -> str:
        """Let a worker reconcile one key; returns the result."""
        self.metrics.changed.clear()
        before = len(self.metrics.results)
        worker = asyncio.create_task(self.controller.work())
        await asyncio.wait_for(self.metrics.changed.wait(), 10)
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker
        # The worker may have begun another reconcile, which the cancellation ended.
        return self.metrics.results[before]


@asynccontextmanager
async def running() -> AsyncIterator[Parts]:
    server = ObjectServer()
    async with serving(server) as api:
        yield Parts(server, Cluster(api))


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The values that `decide` has returned so far."""
    found: list[Any] = []
    original = decide

    def recording(*arguments: Any) -> Any:
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(controller_module, "decide", recording)
    return found


async def test_a_new_job_gets_its_claim_then_its_job_and_its_status_afterwards() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        assert parts.writes() == [("POST", CLAIMS), ("POST", CHILDREN)]
        observation = parts.store.observe(KEY)
        assert observation is not None
        assert [child.name for child in observation.children] == ["demo-prepare-0"]
        assert observation.claim is not None
        assert len(parts.queue) == 1, "the new Job is followed at once"
        await parts.controller.reconcile(KEY)
        assert parts.writes()[2:] == [("PATCH", f"{JOBS}/demo/status")]


async def test_no_job_is_sent_before_the_answer_about_its_claim() -> None:
    """Another object may have the claim's name, and a pod would run in that while the answer is on its way."""
    async with running() as parts:
        asked, answered = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            asked.set()
            await answered.wait()

        parts.server.delays["POST", CLAIMS] = hold
        reconciling = asyncio.create_task(parts.controller.reconcile(KEY))
        await asyncio.wait_for(asked.wait(), 10)
        await asyncio.sleep(0.1)
        assert ("POST", CHILDREN) not in parts.writes()
        answered.set()
        await reconciling
        assert parts.writes() == [("POST", CLAIMS), ("POST", CHILDREN)]


async def test_a_job_that_loses_its_label_while_its_pods_are_read_is_not_believed_gone() -> None:
    """The watch of Jobs tells the loss of the label as a deletion."""
    async with running() as parts:
        await parts.controller.reconcile(KEY)

        async def remove_label() -> None:
            parts.server.delays.clear()
            body = parts.server.objects[CHILD]
            labels = {key: value for key, value in body["metadata"]["labels"].items() if key != JOB_LABEL}
            parts.server.put(CHILDREN, {**body, "metadata": {**body["metadata"], "labels": labels}})
            parts.informer.put_child(parts.server.objects[CHILD], deleted=True)

        parts.server.delays["GET", pods_path("team")] = remove_label
        await parts.informer.refresh(KEY, parts.now)
        observation = parts.store.observe(KEY)
        assert observation is not None
        assert [child.name for child in observation.children] == ["demo-prepare-0"]


async def begin_second_attempt(parts: Parts) -> None:
    """Let the status say that a second attempt of PREPARE is due, whose Job does not exist yet."""
    await parts.controller.reconcile(KEY)
    await parts.controller.reconcile(KEY)
    observation = parts.store.observe(KEY)
    assert observation is not None
    del parts.server.objects[CHILD]
    parts.store.remove_child(KEY, observation.children[0].uid)
    job = parts.server.objects[f"{JOBS}/demo"]
    stage = {"name": "Prepare", "attempt": 1, "jobName": "demo-prepare-1"}
    parts.informer.put_job(parts.server.put(JOBS, {**job, "status": {**job["status"], "stage": stage}}))


async def test_a_later_attempt_starts_behind_the_write_of_its_status() -> None:
    async with running() as parts:
        await begin_second_attempt(parts)
        before = len(parts.writes())
        await parts.controller.reconcile(KEY)
        assert parts.writes()[before:] == [("PATCH", f"{JOBS}/demo/status"), ("POST", CHILDREN)]


@pytest.mark.parametrize(("failing", "code"), [(CLAIMS, 403), (CLAIMS, 500), (CHILDREN, 500)])
async def test_one_of_two_creations_that_fails_is_repeated(failing: str, code: int) -> None:
    async with running() as parts:
        parts.server.failures["POST", failing] = code
        with suppress(ApiError):
            await parts.controller.reconcile(KEY)
        created = {CHILD, f"{CLAIMS}/demo-workspace"} & set(parts.server.objects)
        assert created == ({f"{CLAIMS}/demo-workspace"} if failing == CHILDREN else set())
        if code == 403:
            conditions = parts.server.objects[f"{JOBS}/demo"]["status"]["conditions"]
            assert {entry["reason"] for entry in conditions[:2]} == {"ChildRefused"}
        parts.server.failures.clear()
        parts.now += timedelta(seconds=20)
        await parts.controller.reconcile(KEY)
        assert {CHILD, f"{CLAIMS}/demo-workspace"} <= set(parts.server.objects)
        await parts.controller.reconcile(KEY)
        assert parts.server.objects[f"{JOBS}/demo"]["status"]["conditions"][0]["reason"] == "Pending"


async def test_a_decision_that_lacks_nothing_is_computed_once(decisions: list[Any]) -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        assert len(decisions) == 1, "a new job has its volumes read before"
        await parts.controller.reconcile(KEY)
        assert len(decisions) == 2
        reads = len(parts.server.requests)
        await parts.controller.reconcile(KEY)
        assert len(decisions) == 3
        assert len(parts.server.requests) == reads, "nothing has changed, so nothing is read or written"


async def test_a_lost_job_is_read_again_before_it_counts(decisions: list[Any]) -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        await parts.controller.reconcile(KEY)
        (child,) = parts.store.observe(KEY).children  # type: ignore[union-attr]  # it has just been created
        # The watch says that the Job does not exist any more; the API server still has it.
        parts.store.remove_child(KEY, child.uid)
        del decisions[:]
        labels = parts.server.objects[CHILD]["metadata"]["labels"]
        assert labels["finetune.dev/job"] == "demo"
        await parts.controller.reconcile(KEY)
        assert len(decisions) == 2
        job = parts.server.objects[f"{JOBS}/demo"]
        assert "attempts" not in job["status"]


def retry_of(parts: Parts) -> float:
    """Seconds until the refused creation is tried again."""
    observation = parts.store.observe(KEY)
    assert observation is not None
    assert observation.rejection is not None
    return (observation.rejection.retry_time - parts.now).total_seconds()


async def test_a_refused_child_is_said_at_once_and_created_later() -> None:
    async with running() as parts:
        parts.server.failures["POST", CHILDREN] = 403
        seconds = await parts.controller.reconcile(KEY)
        status = parts.server.objects[f"{JOBS}/demo"]["status"]
        assert {entry["reason"] for entry in status["conditions"][:2]} == {"ChildRefused"}
        assert seconds == pytest.approx(retry_of(parts))
        assert 12 <= retry_of(parts) <= 18
        assert len(parts.queue) == 0, "a refusal queues nothing at once"
        parts.server.failures.clear()
        parts.now += timedelta(seconds=20)
        await parts.controller.reconcile(KEY)
        assert CHILD in parts.server.objects
        observation = parts.store.observe(KEY)
        assert observation is not None
        assert observation.rejection is None


async def test_no_job_is_created_that_would_run_in_a_claim_of_another_owner() -> None:
    async with running() as parts:
        parts.server.put(CLAIMS, {"metadata": {"name": "demo-workspace", "namespace": "team"}, "spec": {}})
        await parts.controller.reconcile(KEY)
        assert ("POST", CHILDREN) not in parts.writes()
        await parts.informer.refresh(KEY, parts.now)
        await parts.controller.reconcile(KEY)
        status = parts.server.objects[f"{JOBS}/demo"]["status"]
        assert {entry["reason"] for entry in status["conditions"][:2]} == {"ChildRefused"}
        parts.now += timedelta(seconds=20)
        await parts.controller.reconcile(KEY)
        assert ("POST", CHILDREN) not in parts.writes(), "the Job waits for the claim"


async def test_a_refused_child_is_asked_for_ever_more_rarely() -> None:
    async with running() as parts:
        parts.server.failures["POST", CHILDREN] = 403
        delays = []
        for _ in range(8):
            await parts.controller.reconcile(KEY)
            delays.append(retry_of(parts))
            await parts.controller.reconcile(KEY)
            parts.now += timedelta(seconds=delays[-1] + 0.1)
        assert all(later > earlier for earlier, later in itertools.pairwise(delays[:5]))
        assert max(delays) <= 360
        assert parts.writes().count(("POST", CHILDREN)) == 8, "one request for each delay"


async def test_an_invalid_child_ends_the_job_with_the_text_of_the_api_server() -> None:
    async with running() as parts:
        parts.server.failures["POST", CHILDREN] = 422
        await parts.controller.reconcile(KEY)
        status = parts.server.objects[f"{JOBS}/demo"]["status"]
        assert (status["phase"], status["failure"]["reason"]) == ("Failed", "InvalidSpec")
        assert "rejected Job demo-prepare-0: no" in status["failure"]["message"]
        assert parts.writes().count(("POST", CHILDREN)) == 1


async def test_a_job_with_an_invalid_child_ends_before_anything_is_created() -> None:
    async with running() as parts:
        spec = make_spec(podTemplate={"labels": {"team": "a"}})
        body = {"metadata": {"name": "demo", "namespace": "team", "uid": UID}, "spec": spec}
        parts.informer.put_job(parts.server.put(JOBS, body))
        parts.server.failures["POST", CHILDREN] = 422
        await parts.controller.reconcile(KEY)
        failed = parts.server.objects[f"{JOBS}/demo"]["status"]["failure"]
        assert failed["reason"] == "InvalidSpec"
        assert "rejected Job demo-prepare-0" in failed["message"]
        assert list(parts.server.objects) == [f"{JOBS}/demo"]


async def test_a_refused_action_blocks_only_those_that_depend_on_it() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        (child,) = parts.store.observe(KEY).children  # type: ignore[union-attr]  # it has just been created
        parts.server.failures["DELETE", CHILD] = 403
        other = f"{CLAIMS}/demo-workspace"
        claim = parts.server.objects[other]["metadata"]["uid"]
        job = parts.store.observe(KEY).job  # type: ignore[union-attr]  # same
        actions = (DeleteJob(child.name, child.uid), DeleteClaim("demo-workspace", claim))
        assert await parts.controller._apply(job, Decision(actions=actions))
        assert other not in parts.server.objects
        observation = parts.store.observe(KEY)
        assert observation is not None
        assert list(observation.refusals) == [f"delete {child.name} {child.uid}"]


async def test_errors_of_all_jobs_are_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        parts.server.failures["PATCH", f"{JOBS}/demo/status"] = 401
        for _ in range(20):
            parts.queue.add(KEY)
            assert await parts.work_once() == "error"
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
        assert "Traceback" not in caplog.text


async def test_a_status_that_cannot_be_recorded_stops_the_actions_without_a_hot_loop() -> None:
    async with running() as parts:
        await begin_second_attempt(parts)
        parts.server.failures["PATCH", f"{JOBS}/demo/status"] = 422
        assert await parts.work_once() == "success"
        assert f"{CHILDREN}/demo-prepare-1" not in parts.server.objects
        assert len(parts.queue) == 0
        requests = len(parts.server.requests)
        parts.clock.now += 59
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(parts.queue.get(), 0.05)
        assert len(parts.server.requests) == requests


async def test_an_unanswered_request_is_no_error_with_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        parts.server.failures["PATCH", f"{JOBS}/demo/status"] = 503
        parts.queue.add(KEY)
        assert await parts.work_once() == "requeue"
        assert "Traceback" not in caplog.text
        assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
        parts.server.failures.clear()
        parts.clock.now += 2
        assert await parts.work_once() == "requeue_after"
        assert "answers again" in caplog.text


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (("GET", f"{CLAIMS}/models"), set()),
        (("POST", CLAIMS), {("POST", CLAIMS)}),
    ],
)
async def test_nothing_is_written_for_a_job_once_its_deletion_is_known(
    monkeypatch: pytest.MonkeyPatch, moment: tuple[str, str], written: set[tuple[str, str]]
) -> None:
    async with running() as parts:
        respond = parts.server.respond

        def delete_meanwhile(method: str, path: str, *others: Any) -> Any:
            if (method, path) == moment:
                body = parts.server.objects[f"{JOBS}/demo"]
                parts.informer.put_job(body, deleted=True)
            return respond(method, path, *others)

        monkeypatch.setattr(parts.server, "respond", delete_meanwhile)
        await parts.controller.reconcile(KEY)
        assert set(parts.writes()) == written


async def test_the_events_of_a_deleted_job_are_forgotten_and_not_those_of_others() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        assert parts.forgotten == []
        parts.informer.put_job(parts.server.objects[f"{JOBS}/demo"], deleted=True)
        await parts.controller.reconcile(KEY)
        assert parts.forgotten == [KEY]


async def test_an_unknown_job_is_ignored() -> None:
    async with running() as parts:
        assert await parts.controller.reconcile(("team", "none")) is None
        assert parts.server.requests == []


async def test_a_conflict_is_retried_and_counts_as_a_requeue() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        parts.server.failures["PATCH", f"{JOBS}/demo/status"] = 409
        parts.queue.add(KEY)
        assert await parts.work_once() == "requeue"
        del parts.server.failures["PATCH", f"{JOBS}/demo/status"]
        parts.clock.now += 1
        assert await parts.work_once() == "requeue_after"
        assert parts.server.objects[f"{JOBS}/demo"]["status"]["phase"] == "Preparing"


async def test_a_conflict_reads_the_job_and_does_not_wait_for_the_watch() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        body = parts.server.objects[f"{JOBS}/demo"]
        parts.server.put(JOBS, {**body, "spec": make_spec(suspend=True)})
        parts.queue.add(KEY)
        assert await parts.work_once() == "requeue"
        assert ("GET", f"{JOBS}/demo") in parts.server.requests
        parts.clock.now += 0.01
        assert await parts.work_once() == "success"
        assert parts.server.objects[f"{JOBS}/demo"]["status"]["phase"] == "Suspended"


async def test_a_job_that_is_gone_is_forgotten_after_a_conflict() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        del parts.server.objects[f"{JOBS}/demo"]
        parts.queue.add(KEY)
        assert await parts.work_once() == "requeue"
        assert parts.store.observe(KEY) is None


async def test_conflicts_that_go_on_are_tried_again_within_a_second() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        parts.server.failures["PATCH", f"{JOBS}/demo/status"] = 409
        parts.queue.add(KEY)
        for _ in range(20):
            assert await parts.work_once() == "requeue"
            parts.clock.now += CONFLICT_DELAY


async def test_an_outage_during_the_read_after_a_conflict_backs_off() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        parts.server.failures |= {("PATCH", f"{JOBS}/demo/status"): 409, ("GET", f"{JOBS}/demo"): 401}
        parts.queue.add(KEY)
        for _ in range(10):
            assert await parts.work_once() == "requeue"
            parts.clock.now += 1000
        parts.queue.add_rate_limited(KEY)
        parts.clock.now += CONFLICT_DELAY
        assert len(parts.queue) == 0


async def test_a_job_of_the_same_name_waits_for_the_objects_of_the_previous_one() -> None:
    async with running() as parts:
        body = {
            "metadata": {
                "name": "demo-prepare-0",
                "namespace": "team",
                "labels": {"finetune.dev/job": "demo"},
                "ownerReferences": [
                    {"kind": "FineTuneJob", "name": "demo", "uid": "earlier", "controller": True}
                ],
            },
            "spec": {},
        }
        # The watch has not shown it yet.
        earlier = parts.server.put(CHILDREN, body)
        parts.queue.add(KEY)
        assert await parts.work_once() == "requeue"
        parts.clock.now += 1
        await parts.work_once()
        conditions = parts.server.objects[f"{JOBS}/demo"]["status"]["conditions"]
        assert conditions[0]["message"] == "waits for the previous FineTuneJob's objects to be gone"
        assert conditions[0]["reason"] == "Pending"
        assert {event.type for event in parts.events} == {"Normal"}
        del parts.server.objects[CHILD]
        earlier["metadata"]["resourceVersion"] = "999"
        parts.informer.wake(parts.informer.put_child(earlier, deleted=True))
        assert await parts.work_once() == "success", "the event of the deletion wakes it"
        assert parts.server.objects[CHILD]["metadata"]["ownerReferences"][0]["uid"] == UID


async def test_an_object_that_is_gone_already_is_forgotten_when_it_is_deleted() -> None:
    """The watch has missed its deletion. Otherwise the next attempt would wait for it until the next full list."""
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        await parts.controller.reconcile(KEY)
        ended = {"conditions": [{"type": "Failed", "status": "True"}]}
        parts.informer.put_child(parts.server.put(CHILDREN, {**parts.server.objects[CHILD], "status": ended}))
        del parts.server.objects[CHILD]
        job = parts.server.objects[f"{JOBS}/demo"]
        stage = {"name": "Prepare", "attempt": 1, "jobName": "demo-prepare-1"}
        status = {**job["status"], "stage": stage}
        parts.informer.put_job(parts.server.put(JOBS, {**job, "status": status}))
        await parts.controller.reconcile(KEY)
        observation = parts.store.observe(KEY)
        assert observation is not None
        assert observation.children == ()
        await parts.controller.reconcile(KEY)
        assert f"{CHILDREN}/demo-prepare-1" in parts.server.objects


async def test_an_object_whose_deletion_conflicts_is_deleted_later() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        (child,) = parts.store.observe(KEY).children  # type: ignore[union-attr]  # it has just been created
        parts.server.failures["DELETE", CHILD] = 409
        job = parts.store.observe(KEY).job  # type: ignore[union-attr]  # same
        deletion = Decision(actions=(DeleteJob(child.name, child.uid),))
        with pytest.raises(ConflictError):
            await parts.controller._apply(job, deletion)
        observation = parts.store.observe(KEY)
        assert observation is not None
        assert [each.deleting for each in observation.children] == [False]
        parts.server.failures.clear()
        await parts.controller._apply(job, deletion)
        assert CHILD not in parts.server.objects


async def test_a_running_job_without_its_label_is_still_followed() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        await parts.controller.reconcile(KEY)
        body = parts.server.objects[CHILD]
        parts.server.put(CHILDREN, {**body, "metadata": {**body["metadata"], "labels": {}}})
        gone = {**body, "metadata": {**body["metadata"], "resourceVersion": str(parts.server.version)}}
        parts.informer.put_child(gone, deleted=True)
        seconds = await parts.controller.reconcile(KEY)
        observation = parts.store.observe(KEY)
        assert observation is not None
        assert [child.watched for child in observation.children] == [False]
        assert "attempts" not in parts.server.objects[f"{JOBS}/demo"]["status"]
        assert seconds == REREAD.total_seconds()
        before = len(parts.server.requests)
        await parts.controller.reconcile(KEY)
        assert len(parts.server.requests) == before, "it is not read at every look"
        parts.now += REREAD
        del parts.server.objects[CHILD]
        await parts.controller.reconcile(KEY)
        attempts = parts.server.objects[f"{JOBS}/demo"]["status"]["attempts"]
        assert attempts[-1]["reason"] == "StageLost"


async def test_an_error_in_one_job_does_not_stop_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        parts.server.failures["PATCH", f"{JOBS}/demo/status"] = 401
        parts.queue.add(KEY)
        assert await parts.work_once() == "error"
        assert "reconciling team/demo failed" in caplog.text
        parts.server.failures.clear()
        parts.clock.now += 1
        assert await parts.work_once() == "requeue_after"
        assert parts.server.objects[f"{JOBS}/demo"]["status"]["phase"] == "Preparing"


async def test_the_deletion_of_a_foreign_object_is_not_even_sent() -> None:
    async with running() as parts:
        await parts.controller.reconcile(KEY)
        observation = parts.store.observe(KEY)
        assert observation is not None
        (child,) = observation.children
        actions = (DeleteJob("report", "uid-of-a-report"), DeletePod("report-x", "uid-of-its-pod"))
        await parts.controller._apply(
            observation.job, Decision(actions=(*actions, DeleteJob(child.name, child.uid)))
        )
        deletions = [path for method, path in parts.writes() if method == "DELETE"]
        assert deletions == [CHILD]
