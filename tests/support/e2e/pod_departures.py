"""Measures the time from a trainer's last log line to its pod's DELETED event on a watch.

The trainer's last line contains its exit time in ms, so the measured time includes kubelet, operator, garbage collector
and API server. Pods and watcher must run on one machine or on machines with synchronized clocks.
"""

from __future__ import annotations

import datetime
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kubernetes import client, config, watch
from urllib3.exceptions import ProtocolError

STAGE_LABEL = "finetune.dev/stage"
_LAST_LINE = re.compile(r"stage=(\w+) outcome=(\w+) code=(\d+) at=(\S+)$")


@dataclass(frozen=True)
class Departure:
    """The end of a pod: `seconds` from its last line to its DELETED event."""

    pod: str
    stage: str
    outcome: str
    seconds: float


class DepartureWatch:
    """Watches the trainer pods of one namespace during a `with` block."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._api = config.new_client_from_config(str(kubeconfig))
        self._core = client.CoreV1Api(self._api)
        self._namespace = namespace
        self._watch = watch.Watch()
        self._last_lines: dict[str, re.Match[str]] = {}
        self._deleted: dict[str, datetime.datetime] = {}
        self._followed: set[str] = set()
        self._followers: list[threading.Thread] = []
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch_pods, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leaving.set()
        self._watch.stop()
        for follower in self._followers:
            follower.join(timeout=5)

    def departures(self) -> list[Departure]:
        """Return the pods that are deleted so far and whose last line was read."""
        found = []
        for pod, gone in sorted(self._deleted.items()):
            line = self._last_lines.get(pod)
            if line is not None:
                left = datetime.datetime.fromisoformat(line[4])
                found.append(Departure(pod, line[1], line[2], (gone - left).total_seconds()))
        return found

    def pods_seen(self) -> set[str]:
        """Return the names of all trainer pods that ran."""
        return set(self._followed)

    def _watch_pods(self) -> None:
        try:
            self._read_events()
        except ProtocolError:
            # A watch ends with its next event or with the cluster, which may end first.
            if not self._leaving.is_set():
                raise

    def _read_events(self) -> None:
        stream = self._watch.stream(
            self._core.list_namespaced_pod, self._namespace, label_selector=STAGE_LABEL, timeout_seconds=3600
        )
        for event in stream:
            now = datetime.datetime.now(datetime.UTC)
            pod: Any = event["object"]
            name = pod.metadata.name
            if event["type"] == "DELETED":
                self._deleted[name] = now
            elif name not in self._followed and pod.status.phase not in (None, "Pending"):
                self._followed.add(name)
                follower = threading.Thread(target=self._follow, args=(name,), daemon=True)
                self._followers.append(follower)
                follower.start()

    def _follow(self, name: str) -> None:
        logs: Any = self._core.read_namespaced_pod_log(  # the raw response, since nothing is preloaded
            name, self._namespace, container="trainer", follow=True, _preload_content=False
        )
        for line in logs:
            match = _LAST_LINE.search(line.decode(errors="replace").strip())
            if match:
                self._last_lines[name] = match
