"""What must hold at every write and at every moment, checked on the server's truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.api.stages import JOB_LABEL, Stage, parse_child_name
from finetune_operator.observed.lost_nodes import OUT_OF_SERVICE

from tests.support.simulation.controllers import ENDED, is_finished
from tests.support.simulation.network import owner_uid
from tests.support.simulation.server import CHILDREN, CLAIMS, JOBS, NODES, PODS, Body, Change

if TYPE_CHECKING:
    from tests.support.simulation.kubelet import Run
    from tests.support.simulation.life import Life
    from tests.support.simulation.operators import Operator


class Checks:
    """Collects violations of one life."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.violations: list[str] = []
        self._trained: set[str] = set()
        """uids of the FineTuneJobs whose status records the success of TRAIN."""
        self._ended: dict[str, tuple[Any, Any]] = {}
        """The end that the status of each FineTuneJob records, by uid."""
        self._used: dict[str, int] = {}
        """The GPU seconds that the status of each FineTuneJob records, by uid."""
        self._owner: dict[str, str] = {}
        """uid of the FineTuneJob of each Job, claim and pod; empty for those that are not the operator's."""
        self._with_claim: set[str] = set()
        """uids of the FineTuneJobs that have had a claim."""
        self.suspended: set[str] = set()
        """uids of the Jobs that somebody else has suspended."""
        life.server.listeners.append(self._notice)
        life.nodes.started = self._started

    def require(self, holds: bool, message: str) -> None:  # noqa: FBT001 -- reads as an assertion
        """Record a violation unless `holds`."""
        if not holds:
            self._life.note("VIOLATION", message)
            self.violations.append(f"{self._life.loop.time():.3f} s: {message}")

    def forget_status(self, uid: str) -> None:
        """The status of this FineTuneJob is lost, and with it what it recorded."""
        self._trained.discard(uid)
        self._ended.pop(uid, None)
        self._used.pop(uid, None)

    # -- writes --------------------------------------------------------------------------------------------------

    def before_write(
        self, operator: Operator, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any]
    ) -> None:
        """An operator is about to send a write."""
        if method == "DELETE":
            self._require_own(path, body)
        if not operator.deleted or query.get("dryRun"):
            return
        if method == "DELETE" and body.get("gracePeriodSeconds") == 0 and self._hangs(path, body):
            # It is removed by force, also for the namesake of its FineTuneJob.
            return
        if method == "DELETE":
            uid = self._owner.get(body["preconditions"]["uid"], "")
        elif path.endswith("/status"):
            uid = body["metadata"]["uid"]
        else:
            uid = owner_uid(body)
        self.require(
            uid not in operator.deleted, f"no {method} {path} after the deletion of {uid} was delivered"
        )

    def _hangs(self, path: str, body: Mapping[str, Any]) -> bool:
        """True for a pod that is being deleted and whose node is gone or out of service, and for one that has just gone."""
        if "/pods/" not in path:
            return False
        server, uid = self._life.server, body["preconditions"]["uid"]
        pod = next((each for each in server.all(PODS) if each["metadata"]["uid"] == uid), None)
        if pod is None:
            return True
        name = pod["spec"].get("nodeName")
        if not name or "deletionTimestamp" not in pod["metadata"]:
            return False
        node = server.get(NODES, "", name)
        taints = () if node is None else node["spec"].get("taints") or ()
        return node is None or any(taint["key"] == OUT_OF_SERVICE for taint in taints)

    def _require_own(self, path: str, body: Mapping[str, Any]) -> None:
        """Every deletion names the uid of an object that a FineTuneJob, or a Job of one, controls."""
        uid = (body.get("preconditions") or {}).get("uid", "")
        self.require(
            bool(self._owner.get(uid)), f"DELETE {path} must not hit {uid or 'any uid'}, a foreign object"
        )

    def _notice(self, change: Change) -> None:
        uid = change.body["metadata"]["uid"]
        if change.plural == PODS and change.type == "ADDED":
            owners = [each["uid"] for each in change.body["metadata"].get("ownerReferences") or ()]
            self._owner[uid] = next((self._owner.get(owner, "") for owner in owners), "")
        if change.plural == JOBS and change.type == "MODIFIED":
            self._see_status(uid, change.body.get("status") or {})
        if uid in self.suspended and change.type == "MODIFIED":
            self.require(
                bool(change.body["spec"].get("suspend")), f"{uid} must stay suspended by somebody else"
            )
        if change.plural in {CHILDREN, CLAIMS} and change.type == "ADDED":
            self._owner[uid] = owner_uid(change.body)
            if change.plural == CLAIMS:
                self._with_claim.add(self._owner[uid])
            named = parse_child_name(change.body["metadata"]["name"])
            if change.plural == CHILDREN and named is not None and named[1] is Stage.TRAIN:
                trained = self._owner[uid] in self._trained
                self.require(not trained, f"no {change.body['metadata']['name']} after TRAIN has succeeded")

    def _see_status(self, uid: str, status: Mapping[str, Any]) -> None:
        for entry in status.get("attempts") or ():
            if entry["stage"] == Stage.TRAIN.value and entry["outcome"] == "Succeeded":
                self._trained.add(uid)
        if (status.get("stage") or {}).get("name") == Stage.MERGE.value:
            self._trained.add(uid)
        succeeded = find_condition(status, Condition.SUCCEEDED)
        end = (succeeded.get("status"), status.get("completionTime"))
        known = self._ended.get(uid)
        self.require(known in {None, end}, f"the end of {uid} must stay {known}, found {end}")
        if succeeded.get("status") in {"True", "False"}:
            self._ended[uid] = end
        self._see_usage(uid, status)

    def _see_usage(self, uid: str, status: Mapping[str, Any]) -> None:
        """The used GPU time never shrinks, and it has all that the listed attempts have used."""
        usage = status.get("usage") or {}
        used, wasted = usage.get("gpuSeconds", 0), usage.get("wastedGpuSeconds", 0)
        known = self._used.get(uid, 0)
        self.require(used >= known, f"the GPU time of {uid} must stay at least {known} s, found {used}")
        self.require(0 <= wasted <= used, f"{uid} must have wasted 0 to {used} s, found {wasted}")
        listed = sum(entry.get("gpuSeconds", 0) for entry in status.get("attempts") or ())
        self.require(listed <= used, f"{uid} must have used the {listed} s of its attempts, found {used}")
        self._used[uid] = used

    # -- trainers ------------------------------------------------------------------------------------------------

    def _started(self, run: Run) -> None:
        self._life.note("run", run.pod, run.task.uid, run.task.stage.value, run.task.attempt, run.node)
        for other in self._life.nodes.runs.values():
            together = other.child == run.child and other.index != run.index
            if other.live and other.task.key == run.task.key and not together:
                self.require(False, f"{run.task} must not run beside {other.task} on {other.node}")
        owner = self._owner.get(run.workspace, "")
        self.require(owner in {"", run.task.uid}, f"{run.task} must not run in the workspace of {owner}")
        if run.trains:
            self.require(run.task.uid not in self._trained, f"{run.task} must not train again")

    def wasted(self) -> list[str]:
        """What a life without any loss of work must not show: a job that fails, and a stage that runs again."""
        works = [run for run in self._life.nodes.runs.values() if run.works]
        runs = Counter((run.task.uid, run.task.stage, run.index) for run in works)
        found = [
            f"{stage.value} of {uid} ran {count} times in pod {index}"
            for (uid, stage, index), count in runs.items()
            if count > 1
        ]
        for job in self._life.server.all(JOBS):
            phase = (job.get("status") or {}).get("phase")
            if phase != "Succeeded":
                found.append(f"{job['metadata']['name']} must succeed, found {phase}")
        return found

    # -- the end -------------------------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """What is not as it must be after the end of every job."""
        server = self._life.server
        found = []
        claims = set()
        for job in server.all(JOBS):
            name, status = job["metadata"]["name"], job.get("status") or {}
            if "completionTime" not in status:
                found.append(f"{name} has not ended: {status.get('phase')}, {_reason(status)}")
            elif self._keeps(job, status):
                claims.add(job["metadata"]["uid"])
        children = [body for body in server.all(CHILDREN) if not _is_hidden(body)]
        hidden = {body["metadata"]["uid"] for body in server.all(CHILDREN)} - {
            body["metadata"]["uid"] for body in children
        }
        pods = [body for body in server.all(PODS) if not _is_left_with(body, hidden)]
        found += [f"Job {body['metadata']['name']} is left" for body in children]
        found += [f"pod {body['metadata']['name']} is left" for body in pods]
        held = {name for body in server.all(PODS) if _is_left_with(body, hidden) for name in _mounts(body)}
        owners = {uid for body in server.all(CLAIMS) if (uid := owner_uid(body)) and not _is_held(body, held)}
        found += [f"the claim of {uid} is left" for uid in sorted(owners - claims)]
        lost = (claims & self._with_claim) - owners
        found += [f"the claim of {uid} must be kept" for uid in sorted(lost)]
        return found

    def _keeps(self, job: Body, status: Mapping[str, Any]) -> bool:
        policy = (job["spec"].get("lifecycle") or {}).get("keepWorkspace", "OnFailure")
        return policy == "Always" or (policy == "OnFailure" and status.get("phase") == "Failed")


def _is_hidden(job: Body) -> bool:
    """True for a finished Job without its label. A new process never sees it, and it goes with its FineTuneJob."""
    return JOB_LABEL not in job["metadata"].get("labels", {}) and is_finished(job)


def _is_left_with(pod: Body, jobs: Collection[str]) -> bool:
    """True for a pod that has ended and stays with one of these Jobs."""
    owners = {owner["uid"] for owner in pod["metadata"].get("ownerReferences") or ()}
    return pod["status"]["phase"] in ENDED and not owners.isdisjoint(jobs)


def _mounts(pod: Body) -> list[str]:
    """The names of the claims of a pod."""
    volumes = pod["spec"]["volumes"]
    return [each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each]


def _is_held(claim: Body, names: Collection[str]) -> bool:
    """True for a deleted claim that only stays because a pod that is left mounts it."""
    return "deletionTimestamp" in claim["metadata"] and claim["metadata"]["name"] in names


def _reason(status: Mapping[str, Any]) -> str:
    found = find_condition(status, Condition.RECONCILING)
    return f"{found.get('reason')}: {found.get('message')}"
