"""Builders of FineTuneJobs, of the trainer's documents, and of nodes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import Progress
from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.observation import (
    JobRecord,
)
from finetune_operator.settings import Settings, TrainerSettings
from finetune_operator.sizing.gpus.nodes import NodeRecord, project_node
from finetune_operator.sizing.gpus.profiles import GpuProfile

from tests.support.repository import ROOT

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
"""A model of 135 million parameters, as the trainer reports its config.json."""


def make_node(
    name: str = "gpu1",
    product: str = "NVIDIA-L4",
    memory: int = 23034,
    gpus: int = 1,
    labels: dict[str, str] | None = None,
    **changes: Any,
) -> NodeRecord:
    """A node as GPU feature discovery labels it; `memory` in MiB."""
    facts = {"product": product, "memory": str(memory), "count": str(gpus)}
    facts |= {"compute.major": "8", "compute.minor": "9"}
    discovered = {f"nvidia.com/gpu.{key}": value for key, value in facts.items()}
    body = {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                **discovered,
                **(labels or {}),
            },
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
                "message": "1 of 20 rows was rejected; see rejected",
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
MERGE_PROVEN: dict[str, Any] = json.loads(
    (ROOT / "contract" / "fixtures" / "result.merge-proven.json").read_text("utf-8")
)["merge"]
"""A merge with all artifacts and every number of the proof."""
SECTIONS: dict[Stage, dict[str, Any]] = {
    Stage.PREPARE: {"prepare": PREPARE},
    Stage.TRAIN: {"train": TRAIN},
    Stage.MERGE: {"merge": MERGE},
    Stage.REPORT: {},
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
    result.pop(stage.slug, None)
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
