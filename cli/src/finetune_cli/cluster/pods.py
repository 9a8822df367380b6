"""A pod that works for this process and is deleted afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from finetune_cli.cluster.kubectl import ClusterError, Kubectl

_POLL_SECONDS = 0.5


@contextmanager
def temporary_pod(
    kubectl: Kubectl, manifest: Mapping[str, Any], phases: Collection[str], seconds: float
) -> Iterator[str]:
    """Create a pod, wait until it is in one of the `phases`, yield its name, and delete it in any case.

    Raises ClusterError if a request fails, and TimeoutError after `seconds`, which says what the pod waits for.
    """
    created = kubectl.json("create", "--filename=-", stdin=json.dumps(manifest))
    name = str(created["metadata"]["name"])
    try:
        _await_phase(kubectl, name, phases, seconds)
        yield name
    except BaseException:
        # The first error says more than that of the deletion. Its deadline ends a pod that stays.
        with suppress(ClusterError):
            _delete(kubectl, name)
        raise
    _delete(kubectl, name)


def _await_phase(kubectl: Kubectl, name: str, phases: Collection[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        pod = kubectl.json("get", "pods", name)
        if (pod.get("status") or {}).get("phase") in phases:
            return
        if time.monotonic() >= end:
            raise TimeoutError(
                f"pod {name}, which reads the claim, must be {' or '.join(phases)} within {seconds:.0f} s, found: "
                f"{why_waiting(pod)}"
            )
        time.sleep(_POLL_SECONDS)


def _delete(kubectl: Kubectl, name: str) -> None:
    kubectl.run("delete", "pod", name, "--wait=false", "--ignore-not-found")


def why_waiting(pod: Mapping[str, Any]) -> str:
    """Return why a pod does not run, in the words of scheduler and kubelet."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in {None, "ContainerCreating", "PodInitializing"}:
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason"))
    return f"phase {status.get('phase', 'Pending')}; its Events may say more"
