"""Reads the API server's audit log, in which each line is a request that has been answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

_READS = frozenset({"get", "list", "watch"})


@dataclass(frozen=True)
class AuditedRequest:
    """A request of the operator, and the time at which the API server received it."""

    pod: str
    """Name of the pod whose token it carries."""
    verb: str
    resource: str
    """With its subresource, as in `finetunejobs/status`."""
    name: str
    received: datetime
    user: str = ""
    group: str = ""
    """The API group; empty for the core group."""
    allowed: bool = True
    """False if RBAC forbids it."""

    @property
    def writes(self) -> bool:
        """True if it may change an object other than a Lease."""
        return self.verb not in _READS and self.resource != "leases"


def read_requests(log: Path) -> list[AuditedRequest]:
    """The requests of all replicas, in the order of their answers."""
    # The last line may be incomplete.
    whole = log.read_text("utf-8").rpartition("\n")[0]
    return [_parse(json.loads(line)) for line in whole.splitlines()]


def _parse(event: dict[str, Any]) -> AuditedRequest:
    target = event.get("objectRef") or {}
    pods = (event["user"].get("extra") or {}).get("authentication.kubernetes.io/pod-name") or [""]
    return AuditedRequest(
        pod=pods[0],
        verb=event["verb"],
        resource="/".join(filter(None, (target.get("resource", ""), target.get("subresource", "")))),
        name=target.get("name", ""),
        received=datetime.fromisoformat(event["requestReceivedTimestamp"]),
        user=event["user"].get("username", ""),
        group=target.get("apiGroup", ""),
        allowed=(event.get("annotations") or {}).get("authorization.k8s.io/decision") != "forbid",
    )
