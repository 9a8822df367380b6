"""A simulated cluster that carries out decisions, and jobs at given points of their lifecycle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.stages import (
    PLACEMENT_ANNOTATION,
    POD_DEFAULTS_ANNOTATION,
    QUEUE_LABEL,
    WORK_STAGES,
    Stage,
    child_name,
)
from finetune_operator.contract.result import Progress
from finetune_operator.lifecycle.actions import (
    Action,
    CreateClaim,
    CreateJob,
    Decision,
    DeleteClaim,
    DeleteJob,
    DeletePod,
    Need,
    SuspendJob,
)
from finetune_operator.lifecycle.decide import decide
from finetune_operator.observed.container_state import ContainerEnd
from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.movement import Movement
from finetune_operator.observed.observation import (
    ChildJob,
    Claim,
    JobRecord,
    Observation,
    Pod,
    Rejection,
)
from finetune_operator.placement.storage import JobVolumes
from finetune_operator.settings import Settings

from tests.support.operator import (
    CONFIG,
    NOW,
    PREPARE,
    SETTINGS,
    UID,
    make_failure,
    make_inventory,
    make_job,
    make_node,
    make_progress,
    make_result,
)

LARGE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""70 billion parameters. Half a byte for each is more than 24 GiB."""
A100 = make_node("big", "NVIDIA-A100-SXM4-80GB", 81920)
PLAIN = replace(make_node("node1"), allocatable={"cpu": "4"}, labels={"kubernetes.io/hostname": "node1"})
"""A node without a GPU."""
SMALL = make_node("small", "NVIDIA-L4", 23034)


@dataclass
class World:
    """A small simulated cluster: it applies decisions and ends pods on command. Each step is one decision."""

    job: JobRecord = field(default_factory=make_job)
    now: datetime = NOW
    inventory: Inventory = field(default_factory=lambda: make_inventory(make_node()))
    settings: Settings = SETTINGS
    children: dict[str, ChildJob] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    claim: Claim | None = None
    progress: Progress | None = None
    movement: Movement | None = None
    rejection: Rejection | None = None
    refusals: dict[str, Rejection] = field(default_factory=dict)
    volumes: JobVolumes = field(default_factory=JobVolumes)
    created: list[str] = field(default_factory=list)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    counter: int = 100
    warnings: dict[str, str] = field(default_factory=dict)
    image_pulls: dict[str, float] = field(default_factory=dict)
    """Why Jobs have no pod and pods do not run, by uid, as far as it shows in Events only."""
    hidden: set[str] = field(default_factory=set)
    """uids of Jobs, pods and claims without the label that the watch selects."""
    read: set[str] = field(default_factory=set)
    """uids of hidden objects that the operator knows, because it has read them."""
    lost_nodes: set[str] = field(default_factory=set)
    """Nodes that do not exist any more. Any other node of a pod exists."""
    lingers: bool = False
    """The live pods of a deleted Job stay until `remove_deleted_pods`, as those of a trainer that saves a checkpoint."""

    def observe(self, *, fresh: bool = False) -> Observation:
        """The observation of the operator."""
        self.read |= self.hidden if fresh else set()
        hidden = self.hidden - self.read
        return Observation(
            job=self.job,
            inventory=self._inventory(),
            children=tuple(
                replace(child, watched=False) if child.uid in self.hidden else child
                for child in self.children.values()
                if child.uid not in hidden
            ),
            pods=tuple(
                replace(pod, watched=False) if pod.uid in self.hidden else pod
                for pod in self.pods.values()
                if pod.uid not in hidden
            ),
            claim=self._claim(hidden),
            progress=self.progress,
            movement=self.movement,
            rejection=self.rejection,
            refusals=self.refusals,
            warnings=dict(self.warnings),
            image_pulls=dict(self.image_pulls),
            volumes=self.volumes,
            fresh=fresh,
        )

    def _claim(self, hidden: set[str]) -> Claim | None:
        if self.claim is None or self.claim.uid in hidden:
            return None
        return replace(self.claim, watched=False) if self.claim.uid in self.hidden else self.claim

    def _inventory(self) -> Inventory:
        """The inventory with the node of a pod that is being deleted, unless the node is lost."""
        names = {pod.node for pod in self.pods.values() if pod.deleting and pod.node} - self.lost_nodes
        missing = {name: PLAIN for name in names if name not in self.inventory.nodes}
        return self.inventory.with_nodes({**self.inventory.nodes, **missing}) if missing else self.inventory

    def decide(self) -> Decision:
        """One decision, with a fresh read if it asks for one; nothing is applied."""
        decision = decide(self.observe(), self.settings, self.now)
        if decision is Need.FRESH_CHILDREN:
            decision = decide(self.observe(fresh=True), self.settings, self.now)
        if decision is Need.POD_WARNINGS:
            observation = replace(self.observe(fresh=True), warnings_read=True)
            decision = decide(observation, self.settings, self.now)
        assert isinstance(decision, Decision), "volumes are always given"
        return decision

    def step(
        self, *, lose_actions: bool = False, arrives: Callable[[Action], bool] = lambda _: True
    ) -> Decision:
        """Decide, write the status and carry out the actions, or lose those that do not arrive, as after a crash."""
        decision = self.decide()
        if decision.status is not None and not decision.acts_first:
            self.job = replace(
                self.job, status=json.loads(json.dumps(decision.status)), resource_version=self._version()
            )
        if not lose_actions:
            for action in filter(arrives, decision.actions):
                self._act(action)
        return decision

    def settle(self) -> None:
        """Step until nothing changes."""
        for _ in range(20):
            before = (dict(self.job.status), dict(self.children), self.claim)
            self.step()
            if (dict(self.job.status), dict(self.children), self.claim) == before:
                return
        raise AssertionError("decisions do not come to rest")

    def run_pod(self, child_key: str, **changes: Any) -> Pod:
        """Start a pod of the child, as the Job controller and the kubelet would."""
        child = self.children[child_key]
        version = self._version()
        pod = Pod(
            name=f"{child.name}-{version}",
            uid=f"pod-{version}",
            owner_uid=child.uid,
            resource_version=version,
            created=self.now,
            phase="Running",
            ip="10.0.0.1",
            node="node1",
            reason="",
            message="",
            deleting=False,
            disrupted=False,
            unschedulable=None,
            waiting=None,
            running=True,
            end=None,
            idle=False,
            job_uid=self.job.uid,
        )
        pod = replace(pod, **{"started": self.now if changes.get("running", True) else None, **changes})
        self.pods[pod.uid] = pod
        return pod

    def end_pod(
        self, child_key: str, message: str | dict[str, Any], code: int = 0, reason: str = "", **changes: Any
    ) -> None:
        """End the newest pod of the child, starting one if it has none."""
        child = self.children[child_key]
        pods = [pod for pod in self.pods.values() if pod.owner_uid == child.uid and pod.end is None]
        pod = pods[-1] if pods else self.run_pod(child_key)
        text = message if isinstance(message, str) else json.dumps(message)
        end = ContainerEnd(exit_code=code, reason=reason, message=text, finished=self.now)
        self.pods[pod.uid] = replace(pod, running=False, end=end, **{"idle": True, **changes})

    def succeed(self, stage: Stage, attempt: int = 0, **changes: Any) -> None:
        """End the stage's pod with a success."""
        self.end_pod(child_name(self.job.name, stage, attempt), make_result(stage, attempt, **changes))

    def fail(self, stage: Stage, reason: str, attempt: int = 0, code: int = 65) -> None:
        """End the stage's pod with a typed failure."""
        self.end_pod(child_name(self.job.name, stage, attempt), make_failure(stage, reason, attempt), code)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        entry = next(entry for entry in self.job.status["conditions"] if entry["type"] == kind)
        return (entry["status"], entry["reason"])

    def _version(self) -> str:
        self.counter += 1
        return str(self.counter)

    def _act(self, action: object) -> None:
        match action:
            case CreateClaim(body) if self.claim is None:
                name = body["metadata"]["name"]
                self.claim = Claim(name, f"claim-{self._version()}", UID, "1", deleting=False)
            case CreateJob(body):
                self._create(body)
            case SuspendJob(name, uid, suspend, version) if self._is_child(name, uid):
                child = self.children[name]
                if version in {"", child.resource_version}:
                    self.children[name] = replace(
                        child, suspended=suspend, held=suspend, resource_version=self._version()
                    )
            case DeleteJob(name, uid) if self._is_child(name, uid):
                self.delete_child(name)
            case DeletePod(_, uid):
                self.pods.pop(uid, None)
            case DeleteClaim(_, uid) if self.claim is not None and self.claim.uid == uid:
                self.claim = None

    def delete_child(self, name: str) -> None:
        """Delete a child and, as the garbage collector would, its pods."""
        child = self.children.pop(name)
        found = dict(self.pods)
        self.pods = {uid: pod for uid, pod in found.items() if pod.owner_uid != child.uid}
        if self.lingers:
            self.pods |= {
                uid: replace(pod, deleting=True)
                for uid, pod in found.items()
                if pod.owner_uid == child.uid and pod.live and pod.node
            }

    def remove_deleted_pods(self) -> None:
        """Let the kubelet confirm that the pods that are being deleted have ended."""
        self.pods = {uid: pod for uid, pod in self.pods.items() if not pod.deleting}

    def _is_child(self, name: str, uid: str) -> bool:
        return name in self.children and self.children[name].uid == uid

    def _create(self, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        if name in self.children:
            self.read.add(self.children[name].uid)
            return
        self.created.append(name)
        self.bodies[name] = body
        members = body["spec"].get("replicatedJobs")
        spec = members[0]["template"]["spec"] if members else body["spec"]
        labels, annotations = body["metadata"]["labels"], body["metadata"].get("annotations", {})
        version = self._version()
        self.children[name] = ChildJob(
            name=name,
            uid=f"job-{version}",
            owner_uid=UID,
            resource_version=version,
            stage=Stage(labels["finetune.dev/stage"].capitalize()),
            attempt=int(labels["finetune.dev/attempt"]),
            created=self.now,
            suspended=body["spec"].get("suspend", False),
            deleting=False,
            finished=False,
            failure=None,
            queue=labels.get(QUEUE_LABEL, ""),
            kind=body["kind"],
            placement=annotations.get(PLACEMENT_ANNOTATION, ""),
            pod_defaults=annotations.get(POD_DEFAULTS_ANNOTATION, ""),
            image=spec["template"]["spec"]["containers"][0]["image"],
            pods=spec["completions"],
        )


def started(stage: Stage = Stage.PREPARE, **changes: Any) -> World:
    """A world in which this stage's Job has just been created."""
    world = World(job=make_job(**changes))
    world.settle()
    for earlier in WORK_STAGES:
        if earlier is stage:
            return world
        world.succeed(earlier)
        world.settle()
    raise AssertionError(stage)


def preparing(config: dict[str, Any], **changes: Any) -> World:
    """A world whose PREPARE runs and has reported this config."""
    world = World(job=make_job(**changes))
    world.settle()
    world.run_pod("demo-prepare-0")
    world.progress = make_progress(Stage.PREPARE, activity="ProvingRows", config=config)
    return world


def prepared(
    config: dict[str, Any] = CONFIG, longest: int = 60, model: dict[str, Any] | None = None, **changes: Any
) -> World:
    """A world whose PREPARE has just ended with this config and longest row, and these further members of the model."""
    world = World(job=make_job(**changes))
    world.settle()
    report = {
        "dataset": {**PREPARE["dataset"], "longestExample": longest},
        "model": {**PREPARE["model"], "config": config, **(model or {})},
    }
    world.succeed(Stage.PREPARE, prepare=report)
    return world


def stalled(world: World) -> tuple[str, ...]:
    """The statuses of Succeeded, Reconciling and Stalled, and their common reason."""
    reasons = {world.condition(kind)[1] for kind in ("Succeeded", "Reconciling", "Stalled")}
    assert len(reasons) == 1
    return (*(world.condition(kind)[0] for kind in ("Succeeded", "Reconciling", "Stalled")), reasons.pop())
