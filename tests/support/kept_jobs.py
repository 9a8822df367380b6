"""A FineTuneJob that has ended, its pods, and what the reader's pod prints."""

from __future__ import annotations

import hashlib
import json
from typing import Any

IMAGE = "registry.example/trainer:1"


def job(**changes: Any) -> dict[str, Any]:
    """A FineTuneJob that failed in its second attempt of TRAIN; `changes` are those of its spec."""
    spec = {
        "model": {"source": {"huggingFace": {"repository": "org/model"}}},
        "dataset": {"source": {"configMap": {"name": "data", "key": "train.jsonl"}}},
        "output": {"destination": {"persistentVolumeClaim": {"claimName": "models"}}},
        **changes,
    }
    return {
        "metadata": {"namespace": "team", "name": "numbers", "uid": "1-2-3"},
        "spec": spec,
        "status": {
            "trainer": {"image": IMAGE, "contractVersion": "1.9"},
            "stage": {"name": "Train", "attempt": 1, "startTime": "2026-01-01T00:00:00Z"},
            "attempts": [{"stage": "Prepare", "attempt": 0}, {"stage": "Train", "attempt": 0}],
        },
    }


def pod(stage: str = "train", attempt: int = 1, **status: Any) -> dict[str, Any]:
    """A pod of a stage, with its status."""
    return {
        "metadata": {
            "name": f"numbers-{stage}-{attempt}-abc",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"finetune.dev/stage": stage, "finetune.dev/attempt": str(attempt)},
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "trainer", "image": "registry.example/trainer:2"}],
            "volumes": [{"name": "workspace", "persistentVolumeClaim": {"claimName": "numbers-workspace"}}],
        },
        "status": status,
    }


def frame(content: bytes | None, *logs: str, error: str = "") -> bytes:
    """The output of `python -m finetune_trainer kept`."""
    head: dict[str, Any] = {"frame": "finetune-kept/1", "logs": list(logs)}
    if content is None:
        return json.dumps({**head, **({"error": error} if error else {})}).encode() + b"\n"
    head |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(head, sort_keys=True).encode() + b"\n" + content + b"\n"
