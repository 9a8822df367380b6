"""Models of the kubelets, the node lifecycle and the pod garbage collection of Kubernetes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_operator.api.stages import CONTAINER_NAME, KIND, Stage, parse_child_name
from finetune_operator.observed.lost_nodes import OUT_OF_SERVICE

from tests.support.simulation.controllers import ENDED, disrupted, index_of
from tests.support.simulation.scheduler import bind, claim_of, free_node
from tests.support.simulation.server import CHILDREN, CLAIMS, NODES, PODS, Body, Change, Server
from tests.support.simulation.trainers import End, Task, Trainers, Workspace, progress

if TYPE_CHECKING:
    from tests.support.simulation.loop import VirtualLoop

EVICTION_SECONDS = 60.0
"""Time after which the pods of an unreachable node are evicted. Kubernetes takes five minutes."""
ORPHAN_SECONDS = 45.0
"""Time after which pods without a node are collected."""


@dataclass
class Run:
    """A trainer's process, whether or not the API server still knows its pod."""

    pod: str
    task: Task
    node: str
    workspace: str
    """uid of the claim."""
    ip: str
    started: float
    trains: bool
    """True if it computes what no run before it has computed."""
    child: str = ""
    """uid of the Job."""
    index: int = 0
    """Number of the pod among the `pods` that run together."""
    pods: int = 1
    works: bool = False
    """True after all pods of the Job have met."""
    leaving: bool = False
    """True if it ends soon, because it has lost the ranks of another pod."""
    live: bool = True
    lost: bool = False
    """True if it ended with its node, without a report."""
    stopping: bool = False


class Nodes:
    """Every node of the cluster with its kubelet."""

    def __init__(self, server: Server, loop: VirtualLoop, trainers: Trainers, draw: random.Random) -> None:
        self._server = server
        self._loop = loop
        self._trainers = trainers
        self._random = draw
        self.runs: dict[str, Run] = {}
        """Every trainer that has started, by the uid of its pod."""
        self.workspaces: dict[str, Workspace] = {}
        self.unreachable: set[str] = set()
        """Nodes that run on without any contact."""
        self.broken = False
        """True while no image can be pulled."""
        self.started: Callable[[Run], None] = lambda _run: None
        """Called before a trainer starts."""
        self._unscheduled: dict[str, None] = {}
        self._waiting: dict[str, None] = {}
        """Pods with a node that wait for their image or for the contact to their node."""
        self._stopping: set[str] = set()
        server.listeners.append(self._notice)

    def _notice(self, change: Change) -> None:
        uid = change.body["metadata"]["uid"]
        if change.plural == PODS:
            if change.type == "ADDED":
                self._later(self._schedule, uid, 0.02, 0.5)
            elif change.type == "DELETED":
                self._unscheduled.pop(uid, None)
                self._waiting.pop(uid, None)
                self._later(self._kill, uid, 0.2, 3.0)
                self.retry()
            elif "deletionTimestamp" in change.body["metadata"] and uid not in self._stopping:
                self._stopping.add(uid)
                self._later(self._stop, uid, 0.05, 1.0)
        elif change.plural == NODES:
            if change.type == "DELETED":
                self._lose(change.body["metadata"]["name"])
            self.retry()
        elif change.plural == CLAIMS and change.type == "ADDED":
            self.retry()

    def _later(self, action: Callable[[str], None], uid: str, shortest: float, longest: float) -> None:
        self._loop.call_later(self._random.uniform(shortest, longest), action, uid)

    def retry(self) -> None:
        """Try again to schedule and to start the pods that wait."""
        for uid in self._unscheduled:
            self._later(self._schedule, uid, 0.05, 1.0)
        for uid in self._waiting:
            self._later(self._start, uid, 0.05, 2.0)
        self._unscheduled.clear()
        self._waiting.clear()

    def _pod(self, uid: str) -> Body | None:
        return next((pod for pod in self._server.all(PODS) if pod["metadata"]["uid"] == uid), None)

    # -- a pod's life --------------------------------------------------------------------------------------------

    def _schedule(self, uid: str) -> None:
        pod = self._pod(uid)
        if pod is None or pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        claim = claim_of(self._server, pod)
        node = (
            free_node(self._server, pod, self.unreachable)
            if claim is not None and "deletionTimestamp" not in claim["metadata"]
            else None
        )
        condition: dict[str, Any] = {"type": "PodScheduled", "lastTransitionTime": self._server.stamp()}
        if node is None:
            self._unscheduled[uid] = None
            condition |= {"status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}
            self._set(pod, conditions=[condition])
            return
        assert claim is not None
        if claim["status"]["phase"] != "Bound":
            bind(self._server, claim)
        pod = self._server.change(PODS, pod, spec={**pod["spec"], "nodeName": node})
        self._set(pod, conditions=[{**condition, "status": "True"}])
        self._later(self._start, uid, 0.3, 4.0)

    def _start(self, uid: str) -> None:
        pod = self._pod(uid)
        if pod is None or uid in self.runs or pod["status"]["phase"] in ENDED:
            return
        if "deletionTimestamp" in pod["metadata"]:
            return
        node = pod["spec"]["nodeName"]
        if node in self.unreachable or self._server.get(NODES, "", node) is None:
            self._waiting[uid] = None
            return
        if self.broken:
            self._waiting[uid] = None
            waiting = {"reason": "ErrImagePull", "message": "no such image"}
            self._set(pod, containerStatuses=[_container({"waiting": waiting})])
            return
        claim, task = claim_of(self._server, pod), self._task(pod)
        if claim is None or task is None:
            self._waiting[uid] = None
            return
        workspace = self.workspaces.setdefault(claim["metadata"]["uid"], Workspace())
        trains = task.stage is Stage.TRAIN and Stage.TRAIN not in workspace.done
        ip = f"10.0.{len(self.runs) // 250}.{len(self.runs) % 250 + 1}"
        child = self._child(pod)
        assert child is not None
        place = (child["metadata"]["uid"], index_of(pod), child["spec"]["completions"])
        run = Run(uid, task, node, claim["metadata"]["uid"], ip, self._loop.time(), trains, *place)
        self.started(run)
        self.runs[uid] = run
        state = {"running": {"startedAt": self._server.stamp()}}
        self._set(pod, phase="Running", podIP=ip, containerStatuses=[_container(state)])
        # Pods of one Job work when all of them run. One that finds the stage done needs no other.
        peers = [run] if task.stage in workspace.done else self._peers(run)
        if task.stage in workspace.done or len(peers) == run.pods:
            for each in peers:
                each.works = True
            seconds = self._trainers.work_seconds(task, workspace)
            self._loop.call_later(seconds, partial(self._finish, run))

    def _peers(self, run: Run) -> list[Run]:
        """The live runs of the pods of one Job, in the order of their numbers."""
        found = [each for each in self.runs.values() if each.child == run.child and each.live]
        return sorted(found, key=lambda each: each.index)

    def _child(self, pod: Body) -> Body | None:
        """The Job of a pod; None if it is gone."""
        owner = (pod["metadata"].get("ownerReferences") or [{"name": "", "uid": ""}])[0]
        job = self._server.get(CHILDREN, pod["metadata"]["namespace"], owner["name"])
        return job if job is not None and job["metadata"]["uid"] == owner["uid"] else None

    def _task(self, pod: Body) -> Task | None:
        """The attempt of a pod, from its owners; None if they are gone."""
        job = self._child(pod)
        named = None if job is None else parse_child_name(job["metadata"]["name"])
        if job is None or named is None:
            return None
        name, stage, attempt = named
        uids = [each["uid"] for each in job["metadata"].get("ownerReferences") or () if each["kind"] == KIND]
        if not uids:
            return None
        return Task((pod["metadata"]["namespace"], name), uids[0], stage, attempt)

    def _finish(self, run: Run) -> None:
        """The trainers of all pods of a Job end by themselves."""
        workspace = self.workspaces[run.workspace]
        alone = run.task.stage in workspace.done
        peers = [run] if alone else self._peers(run)
        if not run.live or not (alone or len(peers) == run.pods):
            return
        if any(each.stopping or each.leaving for each in peers):
            return
        end = self._trainers.end(run.task, workspace)
        if run.pods == 1:
            self._end(run, end)
        elif end.code != 0:
            self._end(self._random.choice(peers), end)
        else:
            for each in peers:
                # Each pod has the result.
                self._loop.call_later(self._random.uniform(0.0, 3.0), self._end, each, end)

    def _end(self, run: Run, end: End) -> None:
        if not run.live:
            return
        run.live = False
        self._report(run.pod, end)
        if end.code != 0:
            self._leave(run)

    def _leave(self, run: Run) -> None:
        """Let the other pods of a Job find out that they have lost the ranks of this one, if they have begun to work."""
        for each in self._peers(run) if run.pods > 1 else ():
            if not each.leaving and not each.stopping and each.works:
                each.leaving = True
                _, end = self._trainers.interrupted(each.task)
                self._loop.call_later(self._random.uniform(0.5, 20.0), self._end, each, end)

    def _report(self, uid: str, end: End) -> None:
        """Tell the API server that a trainer has ended, as soon as its node has contact."""
        pod = self._pod(uid)
        if pod is None:
            return
        node = pod["spec"]["nodeName"]
        if node in self.unreachable:
            self._loop.call_later(5.0, self._report, uid, end)
            return
        if self._server.get(NODES, "", node) is None:
            self.runs[uid].lost = True
            return
        terminated = {
            "exitCode": end.code,
            "reason": end.reason,
            "message": end.message,
            "startedAt": _started_at(pod),
            "finishedAt": self._server.stamp(),
        }
        if pod["status"]["phase"] not in ENDED:
            pod = self._set(pod, phase=end.phase, containerStatuses=[_container({"terminated": terminated})])
        if "deletionTimestamp" in pod["metadata"] and self._server.current(PODS, pod) is not None:
            self._server.delete(PODS, pod, grace=0)
        self.retry()

    def _stop(self, uid: str) -> None:
        """The kubelet sees that a pod is being deleted."""
        pod = self._pod(uid)
        if pod is None:
            return
        node = pod["spec"].get("nodeName")
        if not node or node in self.unreachable or self._server.get(NODES, "", node) is None:
            if node in self.unreachable:
                self._later(self._stop, uid, 3.0, 6.0)
            elif not node:
                self._later(self._collect_unscheduled, uid, 5.0, 40.0)
            return
        run = self.runs.get(uid)
        if run is None or not run.live:
            if pod["status"]["phase"] not in ENDED:
                pod = self._set(pod, phase="Failed")
            self._server.delete(PODS, pod, grace=0)
            return
        if run.stopping:
            return
        run.stopping = True
        seconds, end = self._trainers.interrupted(run.task)
        grace = pod["metadata"].get("deletionGracePeriodSeconds", 30)
        self._loop.call_later(min(seconds, grace), self._end, run, end if seconds <= grace else End(137))

    def _collect_unscheduled(self, uid: str) -> None:
        """Fail a pod that was deleted before it had a node, so that the Job controller lets it go."""
        pod = self._pod(uid)
        if pod is not None:
            self._server.delete(PODS, self._set(pod, phase="Failed"), grace=0)

    def _kill(self, uid: str) -> None:
        """The kubelet sees that a pod was removed by force."""
        run = self.runs.get(uid)
        if run is None or not run.live:
            return
        if run.node in self.unreachable:
            self._later(self._kill, uid, 3.0, 6.0)
        else:
            run.live = False
            self._leave(run)

    def _set(self, pod: Body, **members: Any) -> Body:
        return self._server.change(PODS, pod, status={**pod["status"], **members})

    # -- what happens to pods and nodes --------------------------------------------------------------------------

    def evict(self, pod: Body) -> None:
        """Delete a pod with the condition of a disruption."""
        found = self._server.current(PODS, pod)
        if found is not None and found["status"]["phase"] not in ENDED:
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            kept = [
                each for each in found["status"].get("conditions") or () if each["type"] != "DisruptionTarget"
            ]
            self._server.delete(PODS, self._set(found, conditions=[*kept, condition]))

    def cut_off(self, name: str) -> None:
        """Lose contact with a node, whose trainers run on. After a while its pods are evicted."""
        self.unreachable.add(name)
        self._loop.call_later(EVICTION_SECONDS, self._evict_all, name)

    def _evict_all(self, name: str) -> None:
        if name in self.unreachable:
            for pod in self._pods_on(name):
                self.evict(pod)

    def shut_down(self, name: str) -> None:
        """Let an administrator say that a node is shut down, which it is."""
        node = self._server.get(NODES, "", name)
        if node is not None:
            taint = {"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}
            self._server.change(NODES, node, spec={"taints": [taint]})
            self._lose(name)

    def rejoin(self, name: str) -> None:
        """Restore the contact with a node, or let a node of this name start."""
        self.unreachable.discard(name)
        self._later(self._forget, name, 0.5, 5.0)
        self.retry()

    def _forget(self, name: str) -> None:
        """A kubelet fails the pods whose containers it does not find, and ends those that are being deleted."""
        for pod in self._pods_on(name):
            uid = pod["metadata"]["uid"]
            run = self.runs.get(uid)
            if run is not None and run.lost:
                self._report(uid, End(137, "", "ContainerStatusUnknown"))
            elif "deletionTimestamp" in pod["metadata"]:
                self._stop(uid)

    def _lose(self, name: str) -> None:
        """Everything on a node ends, and nobody reports it."""
        for run in self.runs.values():
            if run.node == name and run.live:
                run.live, run.lost = False, True
                self._leave(run)
        self._loop.call_later(ORPHAN_SECONDS, self._collect_orphans, name)

    def _collect_orphans(self, name: str) -> None:
        """Fail the pods of a node that is gone or shut down, and remove them."""
        node = self._server.get(NODES, "", name)
        if node is not None and not node["spec"].get("taints"):
            return
        for pod in self._pods_on(name):
            if pod["status"]["phase"] in ENDED:
                continue
            if not disrupted(pod):
                condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
                pod = self._set(pod, conditions=[*(pod["status"].get("conditions") or ()), condition])  # noqa: PLW2901
            self._server.delete(PODS, self._set(pod, phase="Failed"), grace=0)

    def _pods_on(self, name: str) -> list[Body]:
        return [pod for pod in self._server.all(PODS) if pod["spec"].get("nodeName") == name]

    # -- what trainers serve -------------------------------------------------------------------------------------

    async def fetch(self, ip: str, port: int) -> bytes | None:
        """The progress document of the trainer at this address."""
        if port != 9500:
            return None
        for run in self.runs.values():
            if run.ip == ip and run.live and run.node not in self.unreachable:
                return progress(run.task, int(self._loop.time() - run.started), self._server.stamp())
        return None


def _started_at(pod: Body) -> str | None:
    """The time at which the trainer of a pod started; None if its status does not say so."""
    for entry in pod["status"].get("containerStatuses") or ():
        found: str | None = (entry["state"].get("running") or {}).get("startedAt")
        return found
    return None


def _container(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": CONTAINER_NAME, "state": state}
