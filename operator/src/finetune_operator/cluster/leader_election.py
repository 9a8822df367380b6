"""Leader election by a coordination.k8s.io Lease, with client-go's defaults (15 s, 10 s, 2 s).

The client library's elector cannot create a Lease, and it keeps leading if the API server is unreachable. Here every
failure counts as a failed renewal. A leader that could not renew for `renew_deadline` raises LeaseLostError, and its
process must end before another replica may lead. If it is stopped meanwhile, fence.py holds back its writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_operator.cluster.client import UNANSWERED, ApiClient
from finetune_operator.cluster.fence import IN_FLIGHT_SECONDS, Fence
from finetune_operator.errors import ApiError, LeaseLostError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """In seconds: validity of a Lease, longest time without a renewal, and time between two tries."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0
    in_flight: float = IN_FLIGHT_SECONDS
    """Time before the end of the validity from which no write is sent. Each write that was sent arrives meanwhile."""


@dataclass
class Elector:
    """One replica's side of the election."""

    api: ApiClient
    namespace: str
    name: str
    identity: str
    clock: Callable[[], float]
    """Monotonic, in seconds, also while the process is stopped. The wall clocks of other replicas are not trusted."""
    fence: Fence
    """Lets this replica write as long as no other one can lead."""
    timing: Timing = field(default_factory=Timing)
    _seen: tuple[str, str] | None = None
    """Holder and renewTime that were read last; `_seen_since` is the time of our clock at which they last changed."""
    _seen_since: float = 0.0
    renewed: float | None = None
    """Time at which the last successful renewal was started; None before the first one."""

    async def acquire(self) -> None:
        """Wait until this replica holds the Lease."""
        self.fence.close()
        while True:
            started = self.clock()
            # A Lease that took long to get is about to expire.
            if await self._try() and self.clock() - started < self.timing.renew_deadline:
                self._note_renewal(started)
                break
            await asyncio.sleep(self.timing.retry_period)
        _logger.info("holds Lease %s/%s as %s", self.namespace, self.name, self.identity)

    async def hold(self) -> None:
        """Renew until canceled. Raises LeaseLostError after too long without a renewal."""
        if self.renewed is None:
            raise AssertionError("the Lease must be acquired before it is held")
        pause = self.timing.retry_period
        while True:
            await asyncio.sleep(pause)
            left = self.renewed + self.timing.renew_deadline - self.clock()
            started = self.clock()
            try:
                if left > 0 and await asyncio.wait_for(self._try(), left):
                    self._note_renewal(started)
            except TimeoutError:
                _logger.warning("renewing the Lease took too long")
            # After a request that hung, little time is left.
            pause = max(self.timing.retry_period - (self.clock() - started), 0.0)
            if self.clock() - self.renewed >= self.timing.renew_deadline:
                raise LeaseLostError(
                    f"Lease {self.namespace}/{self.name} must be renewed within {self.timing.renew_deadline} s, but it "
                    "was not; this process ends so that another replica can lead"
                )

    async def release(self) -> None:
        """Release the Lease, so that another replica need not wait until it expires. Nothing is written from then on."""
        self.fence.close()
        lease = await self._read()
        if lease is not None and _spec(lease).get("holderIdentity") == self.identity:
            lease["spec"] = {**_spec(lease), "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._call("PUT", self._path, lease)
            _logger.info("released Lease %s/%s", self.namespace, self.name)

    def _note_renewal(self, started: float) -> None:
        """Let writes pass until shortly before another replica may lead.

        Others measure the duration from the time at which they see the renewal. That is after the start of its request.
        """
        self.renewed = started
        self.fence.extend(started + self.timing.duration - self.timing.in_flight)

    async def _try(self) -> bool:
        """Take or renew the Lease; False if another replica holds it or if anything fails."""
        try:
            lease = await self._read()
            if lease is None:
                await self._call("POST", self._collection, self._new_lease())
                return True
            if not self._may_take(lease):
                return False
            lease["spec"] = self._next_spec(_spec(lease))
            # The PUT carries the resourceVersion that was read, so one of two replicas gets a conflict.
            await self._call("PUT", self._path, lease)
        except ApiError as error:
            # The client says once a minute that the API server does not answer.
            level = logging.DEBUG if error.status in UNANSWERED else logging.WARNING
            _logger.log(level, "Lease %s/%s: %s", self.namespace, self.name, error)
            return False
        except Exception:
            # The Lease was not renewed, whatever the error is. Continuing would mean two leaders.
            _logger.exception("Lease %s/%s", self.namespace, self.name)
            return False
        return True

    def _may_take(self, lease: dict[str, Any]) -> bool:
        spec = _spec(lease)
        holder = spec.get("holderIdentity") or ""
        if holder in {"", self.identity}:
            return True
        seen = (holder, str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_since = seen, self.clock()
        duration = float(spec.get("leaseDurationSeconds") or self.timing.duration)
        return self.clock() - self._seen_since >= duration

    def _next_spec(self, spec: dict[str, Any]) -> dict[str, Any]:
        now = _micro_time()
        same = spec.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(int(self.timing.duration), 1),
            "acquireTime": spec.get("acquireTime", now) if same else now,
            "renewTime": now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if same else 1),
        }

    def _new_lease(self) -> dict[str, Any]:
        spec = {**self._next_spec({"holderIdentity": self.identity}), "leaseTransitions": 0}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        }

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._call("GET", self._path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request. If nobody answers, it raises ApiError early enough for another try."""
        limit = self.timing.renew_deadline / 2
        try:
            return await asyncio.wait_for(self.api.call(method, path, body=body, limited=False), limit)
        except TimeoutError as error:
            raise ApiError(0, "Unreachable", f"no answer within {limit:.0f} s") from error

    @property
    def _collection(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self.name}"


def _spec(lease: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = lease.get("spec") or {}
    return spec


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
