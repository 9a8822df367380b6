"""Reports and trackers for the tests of tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_trainer.contract.tracking import MlflowTracker
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from finetune_trainer.tracking.client import TrackerClient
from finetune_trainer.tracking.mlflow import MLFLOW_KEYS
from finetune_trainer.tracking.record import Record, make_record

from tests.support.results import fixture

UID = "0c7a3f52-6f0e-4a53-9a5f-8c1d2b3e4f50"
TIMELINE = [
    {"stage": "Prepare", "attempt": 0, "startTime": "2026-01-31T10:00:00.000Z", "completionTime": "2026-01-31T10:05:00.000Z",
     "outcome": "Succeeded"},
    {"stage": "Train", "attempt": 0, "startTime": "2026-01-31T10:06:00.000Z", "completionTime": "2026-01-31T10:20:00.000Z",
     "outcome": "Interrupted"},
    {"stage": "Train", "attempt": 1, "startTime": "2026-01-31T10:21:00.000Z", "completionTime": "2026-01-31T11:00:00.000Z",
     "outcome": "Succeeded"},
    {"stage": "Merge", "attempt": 0, "startTime": "2026-01-31T11:01:00.000Z", "completionTime": "2026-01-31T11:10:00.000Z",
     "outcome": "Succeeded"},
]  # fmt: skip


def report(points: int = 400) -> dict[str, Any]:
    """Return a report on a finished job, with a curve of this many points."""
    train = fixture("train-evaluated")["train"]
    return {
        "version": "1.0",
        "job": {"namespace": "team", "name": "bot"},
        "specHash": "sha256:" + "1" * 64,
        "state": "Succeeded",
        "base": {"name": "Qwen/Qwen3-8B", "parameters": 8_190_735_360, "commit": None, "digest": "sha256:" + "2" * 64},
        "dataset": {"digest": "sha256:" + "3" * 64, "rows": 900, "kept": 870, "format": {"name": "Messages", "why": "x"}},
        "plan": {"learningRate": 0.0002, "lora": {"rank": 16, "variant": "Standard"}, "maximumSteps": points},
        "training": {**{name: value for name, value in train.items() if name != "evaluation"}, "steps": points},
        "evaluation": train["evaluation"],
        "curve": {
            "steps": points,
            "points": [
                {"step": step, "loss": 3 / step, "learningRate": 0.0002, "gradientNorm": None if step == 1 else 1.5}
                for step in range(1, points + 1)
            ],
            "heldOut": [{"step": points // 2, "loss": 1.25}],
        },
        "merge": fixture("merge-proven")["merge"],
        "mergeOnto": "TrainedWeights",
        "timeline": TIMELINE,
    }  # fmt: skip


def record(points: int = 400, uid: str = UID) -> Record:
    """Return the record of that report."""
    return make_record(report(points), uid, {"manifest": "sha256:" + "4" * 64})


def mlflow_tracker(address: str, **members: Any) -> MlflowTracker:
    """Return an MLflow server of the administrator."""
    return MlflowTracker(**{"uri": address, "experiment": "team", "any_address": True, **members})


def mlflow_client(
    tracker: MlflowTracker, environment: dict[str, str] | None = None, **options: Any
) -> TrackerClient:
    """Return a client that does not wait between attempts."""
    network = Network(retry=RetryPolicy(30, sleep=lambda _seconds: None))
    return TrackerClient(
        "MLflow", tracker, environment or {}, network, allow_private=False, keys=MLFLOW_KEYS, **options
    )


def report_files(folder: Path) -> dict[str, Path]:
    """Write two documents of a report and return them by name."""
    files = {"job.json": folder / "job.json", "index.html": folder / "index.html"}
    for name, path in files.items():
        path.write_text(f"content of {name}")
    return files
