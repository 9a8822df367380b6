"""FineTuneJobs as the API server returns them, for tests of the command line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

START = "2026-11-29T10:00:00Z"
NOW = datetime(2026, 11, 29, 10, 30, tzinfo=UTC)


def cli_job(name: str = "support-bot", spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """A job with a status; `spec` adds members to the spec."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "team-a", "creationTimestamp": START},
        "spec": {
            "model": {"source": {"huggingFace": {"repository": "org/base"}}},
            "dataset": {"source": {"persistentVolumeClaim": {"claimName": "data", "path": "rows.jsonl"}}},
            "output": {"destination": {"persistentVolumeClaim": {"claimName": "models"}}},
            **(spec or {}),
        },
        "status": status,
    }


def condition(kind: str, status: str, reason: str = "Because", message: str = "text") -> dict[str, Any]:
    """A condition."""
    return {"type": kind, "status": status, "reason": reason, "message": message}


def attempt(stage: str, start: str, end: str, outcome: str = "Succeeded", number: int = 0) -> dict[str, Any]:
    """A finished attempt between two times of the day, such as 10:05."""
    day = START[:11]
    times = {"startTime": f"{day}{start}:00Z", "completionTime": f"{day}{end}:00Z"}
    return {"stage": stage, "attempt": number, "outcome": outcome, **times}


def training(name: str = "support-bot", step: int = 18, loss: str = "1.2345") -> dict[str, Any]:
    """A job that trains since 10:10."""
    return cli_job(
        name,
        phase="Training",
        conditions=[
            condition("Succeeded", "Unknown", "Progressing"),
            condition("Reconciling", "True", "Training"),
        ],
        stage={"name": "Train", "attempt": 0, "startTime": "2026-11-29T10:10:00Z", "node": "gpu-1"},
        progress={
            "stage": "Train",
            "activity": "Training",
            "step": step,
            "totalSteps": 45,
            "percent": f"{step * 100 // 45}%",
            "loss": loss,
            "tokensPerSecond": "1234.5",
            "estimatedCompletionTime": "2026-11-29T10:42:00Z",
        },
        attempts=[attempt("Prepare", "10:00", "10:10")],
    )


def succeeded(name: str = "support-bot", **status: Any) -> dict[str, Any]:
    """A job that succeeded at 10:28."""
    return cli_job(
        name,
        **{
            "phase": "Succeeded",
            "completionTime": "2026-11-29T10:28:00Z",
            "conditions": [condition("Succeeded", "True", "Completed")],
            "stage": {"name": "Merge", "attempt": 0, "startTime": "2026-11-29T10:25:00Z"},
            "attempts": [
                attempt("Prepare", "10:00", "10:10"),
                attempt("Train", "10:10", "10:13", "Failed"),
                attempt("Train", "10:13", "10:25", number=1),
                attempt("Merge", "10:25", "10:28"),
            ],
            "model": {"digest": "sha256:base"},
            "dataset": {"digest": "sha256:data", "rows": 280, "kept": 280},
            "plan": {
                "gpu": {"product": "NVIDIA L4"},
                "memory": {"deviceBytes": 18_000_000_000},
                "duration": {"gpuHours": "0.21"},
                "training": {"microBatchSize": 2, "learningRate": "0.0001"},
            },
            "usage": {
                "gpuSeconds": 900,
                "wastedGpuSeconds": 180,
                "product": "NVIDIA L4",
                "cost": {"amount": "0.60", "wasted": "0.12", "currency": "EUR"},
            },
            "evaluation": {
                "verdict": "Improved",
                "rows": 40,
                "baseLoss": "2.011",
                "tunedLoss": "0.533",
                "difference": "-1.478",
                "interval": ["-1.528", "-1.428"],
            },
            "artifacts": [
                {"kind": "Merged", "uri": "pvc://team-a/models/support-bot/merged", "digest": "sha256:m"}
            ],
            **status,
        },
    )


def failed(name: str = "support-bot") -> dict[str, Any]:
    """A job that failed in PREPARE."""
    message = "at most 1 % of the rows may be rejected, found 12 %; see status.dataset.rejected"
    return cli_job(
        name,
        phase="Failed",
        completionTime="2026-11-29T10:05:00Z",
        conditions=[condition("Succeeded", "False", "TooManyRowsRejected", message)],
        stage={"name": "Prepare", "attempt": 0, "startTime": START},
        attempts=[attempt("Prepare", "10:00", "10:05", "Failed")],
        failure={"stage": "Prepare", "reason": "TooManyRowsRejected", "message": message},
    )
