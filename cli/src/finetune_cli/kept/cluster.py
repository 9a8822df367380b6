"""What reading a kept file asks of the cluster, through kubectl with the user's own rights. Every function raises ClusterError."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_operator.api.stages import JOB_LABEL

from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.cluster.pods import temporary_pod

_LIMIT_BYTES = 16 << 20
"""More than the pod prints."""


def pods_of(kubectl: Kubectl, job: str) -> list[dict[str, Any]]:
    """The pods of a job's stages."""
    found: list[dict[str, Any]] = kubectl.json("get", "pods", "-l", f"{JOB_LABEL}={job}")["items"]
    return found


def existing_claims(kubectl: Kubectl, names: Sequence[str]) -> set[str]:
    """Those of the names that are claims and stay."""
    wanted = dict.fromkeys(names)
    if not wanted:
        return set()
    text = kubectl.run("get", "persistentvolumeclaims", *wanted, "--ignore-not-found", "--output=json")
    found = json.loads(text) if text.strip() else {"items": []}
    items = found.get("items", [found])
    return {item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]}


def log_lines(kubectl: Kubectl, pod: str, container: str, *, follow: bool) -> Iterator[bytes]:
    """The lines of a container's log as they come."""
    with kubectl.stream("logs", pod, "-c", container, *(["--follow"] if follow else [])) as output:
        yield from output


def reader_output(kubectl: Kubectl, pod: Mapping[str, Any], seconds: int) -> bytes:
    """Create a pod, wait for its end, and return its log; the pod is deleted in any case.

    Raises TimeoutError after `seconds`.
    """
    inside = kubectl.within(pod["metadata"]["namespace"])
    try:
        with temporary_pod(inside, pod, ("Succeeded", "Failed"), seconds) as name:
            return inside.output("logs", name, f"--limit-bytes={_LIMIT_BYTES}")
    except TimeoutError as error:
        raise TimeoutError(f"{error}; free the claim or raise --timeout") from error
