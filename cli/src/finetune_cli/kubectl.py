"""Read from a cluster for a command that can take a file instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_cli.cluster.kubectl import ClusterError, Kubectl
from finetune_cli.errors import UsageError


def kubectl_get(arguments: Sequence[str], kubectl: Kubectl, remedy: str) -> Any:
    """The JSON that `kubectl get ARGUMENTS` prints.

    Raises UsageError with kubectl's message and `remedy` if there is no kubectl, no cluster or no permission.
    """
    try:
        return kubectl.json("get", *arguments)
    except ClusterError as error:
        raise UsageError(f"kubectl get {' '.join(arguments)} failed: {error}; {remedy}") from error
