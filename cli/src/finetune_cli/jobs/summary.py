"""A FineTuneJob on one line: the members that lists, events and comparisons share (contract/cli.schema.json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_cli.cluster.client import condition


def summary(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a job. Absent values are None, so that every document has the same members."""
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    stage, progress = status.get("stage") or {}, status.get("progress") or {}
    ended = condition(job, "Succeeded")
    current = progress if progress.get("stage") == stage.get("name") else {}
    return {
        "namespace": metadata.get("namespace"),
        "name": metadata["name"],
        "phase": status.get("phase"),
        "reason": ended.get("reason"),
        "message": ended.get("message"),
        "suspended": bool(spec.get("suspend")),
        "stage": stage.get("name"),
        "attempt": stage.get("attempt"),
        "node": stage.get("node"),
        "activity": current.get("activity"),
        "step": current.get("step"),
        "totalSteps": current.get("totalSteps"),
        "percent": current.get("percent"),
        "loss": current.get("loss"),
        "tokensPerSecond": current.get("tokensPerSecond"),
        "estimatedCompletionTime": current.get("estimatedCompletionTime"),
        "model": location((spec.get("model") or {}).get("source") or {}),
        "dataset": location((spec.get("dataset") or {}).get("source") or {}),
        "gpu": ((status.get("plan") or {}).get("gpu") or {}).get("product"),
        "gpus": gpu_count(job),
        "queue": spec.get("queueName"),
        "verdict": (status.get("evaluation") or {}).get("verdict"),
        "artifacts": [item["uri"] for item in status.get("artifacts") or ()],
        "creationTime": metadata.get("creationTimestamp"),
        "completionTime": status.get("completionTime"),
    }


def gpu_count(job: Mapping[str, Any]) -> int:
    """Return the number of GPUs that TRAIN requests."""
    return int(((job.get("spec") or {}).get("resources") or {}).get("gpus") or 1)


def location(source: Mapping[str, Any]) -> str | None:
    """Return a source of a model or a dataset as text. A URL has only the name of its Secret."""
    for kind, value in source.items():
        match kind:
            case "huggingFace":
                return f"hf://{value['repository']}"
            case "s3" | "gcs" | "azure":
                return str(value["uri"])
            case "persistentVolumeClaim":
                return "/".join(
                    ["pvc:/", value["claimName"], *([value["path"]] if value.get("path") else [])]
                )
            case "configMap":
                return f"configmap://{value['name']}/{value['key']}"
            case "url":
                reference = value["secretKeyRef"]
                return f"secret://{reference['name']}/{reference['key']}"
    return None
