"""Kills the leading replica again and again, and records when one led."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from devcluster import product
from devcluster.kubectl import Kubectl, KubectlError

from tests.support.e2e.operator_process import find_replica

_LOOK_SECONDS = 0.5
_SEED_SECONDS = 5.0


@dataclass
class LeaderKiller:
    """Kills each leader with SIGKILL when it has led for `period` seconds, during a `with` block.

    The pod is deleted, too: a container that ended so often would be restarted after minutes only.
    """

    kubectl: Kubectl
    period: float
    kills: int = 0
    reigns: list[list[float]] = field(default_factory=list)
    """First and last renewal of each leader, in seconds of the monotonic clock."""
    _leaving: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None

    def __enter__(self) -> Self:
        self._system = self.kubectl.within(product.SYSTEM_NAMESPACE)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._leaving.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def led(self, start: float, end: float) -> bool:
        """True if one replica led from `start` to `end`, and has had the time to fill its store before."""
        return any(first + _SEED_SECONDS <= start and end <= last for first, last in self.reigns)

    def _run(self) -> None:
        try:
            holder = ""
            while not self._leaving.wait(_LOOK_SECONDS):
                # The API server of a busy machine does not answer every request in time.
                with suppress(KubectlError):
                    holder = self._look(holder)
        except BaseException as error:  # noqa: BLE001 -- raised at the end of the block
            self._error = error

    def _look(self, known: str) -> str:
        """Look at the Lease and return its holder. Kill the holder if it has led long enough."""
        holder, renewed = self._leader()
        if not holder:
            return known
        if holder != known:
            self.reigns.append([renewed, renewed])
        self.reigns[-1][1] = max(self.reigns[-1][1], renewed)
        if time.monotonic() - self.reigns[-1][0] < self.period:
            return holder
        # It may have ended by itself.
        with suppress(AssertionError, ProcessLookupError, KubectlError):
            os.kill(find_replica(holder).pid, signal.SIGKILL)
            self.kills += 1
            self._system("delete", "pod", holder, "--force", "--grace-period=0", "--wait=false")
        return holder

    def _leader(self) -> tuple[str, float]:
        """Return the holder of the Lease and the time of its last renewal, on the monotonic clock.

        The holder is empty unless it is a pod that exists and that nobody deletes.
        """
        spec: dict[str, Any] = self._system.json("get", "leases")["items"][0]["spec"]
        holder = str(spec.get("holderIdentity") or "")
        if not holder:
            return "", 0.0
        age = (datetime.now(UTC) - datetime.fromisoformat(spec["renewTime"])).total_seconds()
        found = self._system.run("get", "pod", holder, "--output=jsonpath={.metadata.deletionTimestamp}")
        exists = found.returncode == 0 and not found.stdout
        return holder if exists else "", time.monotonic() - age
