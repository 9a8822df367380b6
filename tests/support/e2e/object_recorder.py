"""Records every Job and pod of a namespace during a `with` block, even short-lived ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from kubernetes import client, config, watch
from urllib3.exceptions import ProtocolError

_WATCH_SECONDS = 600


class ObjectRecorder:
    """Records the names of Jobs and pods of one namespace, with watches that start with the block."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        api = config.new_client_from_config(str(kubeconfig))
        core, batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self._lists: dict[str, Callable[..., Any]] = {
            "jobs": batch.list_namespaced_job,
            "pods": core.list_namespaced_pod,
        }
        self._namespace = namespace
        self._found: dict[str, dict[str, Any]] = {kind: {} for kind in self._lists}
        self._watches = [watch.Watch() for _ in self._lists]
        self._leaving = threading.Event()

    def __enter__(self) -> Self:
        for (kind, call), watching in zip(self._lists.items(), self._watches, strict=True):
            version = call(self._namespace, limit=1).metadata.resource_version
            threading.Thread(target=self._follow, args=(kind, call, watching, version), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leaving.set()
        for watching in self._watches:
            watching.stop()

    @property
    def jobs(self) -> list[str]:
        """Return the names of the Jobs, sorted."""
        return sorted(self._found["jobs"])

    @property
    def gpu_pods(self) -> list[str]:
        """Return the names of the pods that requested an extended resource, sorted."""
        return sorted(name for name, pod in self._found["pods"].items() if _asks_for_a_device(pod))

    def _follow(self, kind: str, call: Callable[..., Any], watching: Any, version: str) -> None:
        try:
            for event in watching.stream(
                call, self._namespace, resource_version=version, timeout_seconds=_WATCH_SECONDS
            ):
                found = event["object"]
                self._found[kind].setdefault(found.metadata.name, found)
        except ProtocolError:
            # A watch ends with its next event or with the cluster, which may end first.
            if not self._leaving.is_set():
                raise


def _asks_for_a_device(pod: Any) -> bool:
    limits = [container.resources.limits or {} for container in pod.spec.containers]
    return any("/" in name for limit in limits for name in limit)
