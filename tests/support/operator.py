"""Builders of FineTuneJobs and of what a cluster would show of their children."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.api.stages import PLACEMENT_ANNOTATION, Stage, child_name
from finetune_operator.contract.result import Progress
from finetune_operator.lifecycle.actions import (
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
from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.observation import (
    ChildJob,
    Claim,
    ContainerEnd,
    JobRecord,
    Observation,
    Pod,
    Rejection,
)
from finetune_operator.placement.storage import JobVolumes
from finetune_operator.settings import Settings, TrainerSettings
from finetune_operator.sizing.gpus.nodes import NodeRecord, project_node
from finetune_operator.sizing.gpus.profiles import GpuProfile

NOW = datetime(2026, 11, 24, 9, 0, 0, tzinfo=UTC)
UID = "0c7a3f52-6f0e-4a53-9a5f-8c1d2b3e4f50"
DIGEST = "sha256:" + "a" * 64
TRAINER = TrainerSettings(image="registry.example/finetune/trainer:1", device="cpu")
SETTINGS = Settings(trainer=TRAINER)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""A model of 135 million parameters, as the trainer tells its config.json."""


def make_node(
    name: str = "gpu1",
    product: str = "NVIDIA-L4",
    memory: int = 23034,
    gpus: int = 1,
    labels: dict[str, str] | None = None,
    **changes: Any,
) -> NodeRecord:
    """A node as GPU feature discovery labels it; `memory` in MiB."""
    told = {"product": product, "memory": str(memory), "count": str(gpus)}
    told |= {"compute.major": "8", "compute.minor": "9"}
    discovered = {f"nvidia.com/gpu.{key}": value for key, value in told.items()}
    body = {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": {"kubernetes.io/hostname": name, **discovered, **(labels or {})},
        },
        "status": {
            "allocatable": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    return replace(project_node(body), **changes)


def make_inventory(
    *nodes: NodeRecord, profiles: tuple[GpuProfile, ...] = (), problem: str | None = None
) -> Inventory:
    """The GPUs of these nodes."""
    return Inventory({node.name: node for node in nodes}, profiles, problem=problem)


def make_spec(**changes: Any) -> dict[str, Any]:
    """A small valid spec; `changes` replace top-level members."""
    return {
        "model": {"source": {"persistentVolumeClaim": {"claimName": "models", "path": "smol"}}},
        "dataset": {"source": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
        "output": {"destination": {"persistentVolumeClaim": {"claimName": "artifacts"}}},
        **changes,
    }


def make_job(
    spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **changes: Any
) -> JobRecord:
    """A FineTuneJob as the store holds it."""
    job = JobRecord(
        namespace="team",
        name="demo",
        uid=UID,
        generation=1,
        resource_version="10",
        created=NOW,
        deleting=False,
        spec=spec if spec is not None else make_spec(),
        status=status or {},
    )
    return replace(job, **changes)


PREPARE = {
    "dataset": {
        "digest": DIGEST,
        "rows": 20,
        "kept": 19,
        "duplicates": 0,
        "rejected": {"EmptyAnswer": 1},
        "trainingExamples": 17,
        "validationExamples": 2,
        "supervisedTokens": 400,
        "longestExample": 60,
        "format": {"name": "Messages", "why": "column `messages` holds objects with `role` and `content`"},
        "source": {"kind": "ObjectStore", "uri": "s3://bucket/rows.jsonl", "etag": "0123abcd", "size": 4096},
        "nearDuplicates": 2,
        "leaked": 0,
        "languages": [{"code": "en", "fraction": 0.95}, {"code": "de", "fraction": 0.05}],
        "reasoningFraction": 0.25,
        "promptVariety": 0.625,
        "capacityRatio": 0.0123456789,
        "coverage": {"targets": 10, "covered": 9},
        "shortened": 1,
        "warnings": [
            {
                "code": "RowsRefused",
                "value": 0.05,
                "threshold": 0.0,
                "message": "1 of 20 rows was refused; see rejected",
            }
        ],
        "example": {"row": 1, "learned": "hello"},
    },
    "model": {
        "architecture": "LlamaForCausalLM",
        "parameters": 134515008,
        "commit": None,
        "digest": DIGEST,
        "quantizedModules": 210,
        "bytes": 80000000,
        "config": CONFIG,
    },
}
TRAIN = {
    "device": "cpu",
    "steps": 40,
    "trainingLoss": 0.5,
    "tokensPerSecond": 100.0,
    "adapterDigest": DIGEST,
    "evaluation": {
        "rows": 2,
        "baseLoss": 2.0,
        "tunedLoss": 1.0,
        "difference": -1.0,
        "interval": [-1.25, -0.75],
        "verdict": "Improved",
    },
}
MERGE: dict[str, Any] = {
    "artifacts": [
        {
            "kind": "Merged",
            "uri": "pvc://team/artifacts/demo/merged",
            "digest": DIGEST,
            "bytes": 9,
            "files": 3,
        }
    ],
    "verification": {
        "rows": 2,
        "tokens": 30,
        "klDivergence": 0.001,
        "trainedLoss": 1.0,
        "mergedLoss": 1.001,
        "prompt": "hi",
        "answer": "hello",
    },
}
SECTIONS: dict[Stage, dict[str, Any]] = {
    Stage.PREPARE: {"prepare": PREPARE},
    Stage.TRAIN: {"train": TRAIN},
    Stage.MERGE: {"merge": MERGE},
}


def make_result(stage: Stage, attempt: int = 0, **changes: Any) -> dict[str, Any]:
    """A result document of contract/result.schema.json; a success unless `changes` say otherwise."""
    return {
        "version": "1.2",
        "uid": UID,
        "stage": stage.value,
        "attempt": attempt,
        "outcome": "Succeeded",
        "startTime": "2026-11-24T09:00:00Z",
        "completionTime": "2026-11-24T09:00:05Z",
        **copy.deepcopy(SECTIONS[stage]),
        **changes,
    }


def make_failure(stage: Stage, reason: str, attempt: int = 0, outcome: str = "Failed") -> dict[str, Any]:
    """A result document of an attempt that did not succeed."""
    result = make_result(
        stage, attempt, outcome=outcome, reason=reason, message=f"must not be {reason}", logTail=["last"]
    )
    del result[stage.slug]
    return result


def make_progress(stage: Stage, attempt: int = 0, **changes: Any) -> Progress:
    """A progress document as the poller stores it."""
    document = {
        "version": "1.2",
        "uid": UID,
        "stage": stage.value,
        "attempt": attempt,
        "activity": "Training",
        "step": 5,
        "totalSteps": 40,
        "loss": 1.5,
        "startTime": "2026-11-24T09:00:00Z",
        "heartbeatTime": "2026-11-24T09:00:05Z",
        **changes,
    }
    return Progress.model_validate(document)


@dataclass
class World:
    """A cluster in miniature: applies decisions and ends pods on command. One step, one decision."""

    job: JobRecord = field(default_factory=make_job)
    now: datetime = NOW
    inventory: Inventory = field(default_factory=lambda: make_inventory(make_node()))
    settings: Settings = SETTINGS
    children: dict[str, ChildJob] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    claim: Claim | None = None
    progress: Progress | None = None
    rejection: Rejection | None = None
    volumes: JobVolumes = field(default_factory=JobVolumes)
    created: list[str] = field(default_factory=list)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    counter: int = 100

    def observe(self, *, fresh: bool = False) -> Observation:
        """What the operator would see."""
        return Observation(
            job=self.job,
            inventory=self.inventory,
            children=tuple(self.children.values()),
            pods=tuple(self.pods.values()),
            claim=self.claim,
            progress=self.progress,
            rejection=self.rejection,
            volumes=self.volumes,
            fresh=fresh,
        )

    def decide(self) -> Decision:
        """One decision, with a fresh read if it asks for one; nothing is applied."""
        decision = decide(self.observe(), self.settings, self.now)
        if decision is Need.FRESH_CHILDREN:
            decision = decide(self.observe(fresh=True), self.settings, self.now)
        assert isinstance(decision, Decision), "volumes are always given"
        return decision

    def step(self, *, lose_actions: bool = False) -> Decision:
        """Decide, write the status and carry the actions out, or lose them as a crash in between would."""
        decision = self.decide()
        if decision.status is not None:
            self.job = replace(
                self.job, status=json.loads(json.dumps(decision.status)), resource_version=self._version()
            )
        if not lose_actions:
            for action in decision.actions:
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
        )
        pod = replace(pod, **changes)
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
        """End the stage's pod well."""
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
            case SuspendJob(name, uid, suspend) if self._is_child(name, uid):
                self.children[name] = replace(self.children[name], suspended=suspend)
            case DeleteJob(name, uid) if self._is_child(name, uid):
                self.delete_child(name)
            case DeletePod(_, uid):
                self.pods.pop(uid, None)
            case DeleteClaim(_, uid) if self.claim is not None and self.claim.uid == uid:
                self.claim = None

    def delete_child(self, name: str) -> None:
        """Delete a child and, as the garbage collector would, its pods."""
        child = self.children.pop(name)
        self.pods = {uid: pod for uid, pod in self.pods.items() if pod.owner_uid != child.uid}

    def _is_child(self, name: str, uid: str) -> bool:
        return name in self.children and self.children[name].uid == uid

    def _create(self, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        if name in self.children:
            return
        self.created.append(name)
        self.bodies[name] = body
        labels = body["metadata"]["labels"]
        version = self._version()
        self.children[name] = ChildJob(
            name=name,
            uid=f"job-{version}",
            owner_uid=UID,
            resource_version=version,
            stage=Stage(labels["finetune.dev/stage"].capitalize()),
            attempt=int(labels["finetune.dev/attempt"]),
            created=self.now,
            suspended=False,
            deleting=False,
            finished=False,
            failure=None,
            placement=body["metadata"].get("annotations", {}).get(PLACEMENT_ANNOTATION, ""),
        )
