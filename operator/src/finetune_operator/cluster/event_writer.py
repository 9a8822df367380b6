"""Writes Kubernetes Events beside the reconciles, in one task with a rate limit of its own.

Nothing depends on Events. So they never wait in the way of a reconcile, and they are dropped if the API server does not
take them. Its answers to them say nothing about other requests: it may keep Events in a database of their own, or limit
their rate (admission plugin EventRateLimit).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal, Protocol

from finetune_operator.api.formats import format_time
from finetune_operator.api.stages import GROUP, KIND, VERSION
from finetune_operator.cluster.client import MERGE, ApiClient
from finetune_operator.cluster.event_buffer import EventBuffer, EventKey, PendingEvent
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.cluster.resources import FIELD_MANAGER, events_path
from finetune_operator.cluster.written_events import WrittenEvents
from finetune_operator.errors import ApiError, OperatorError
from finetune_operator.observed.observation import JobRecord, Key
from finetune_operator.status.events import Transition

RATE = 20.0
"""Events per second. A thousand new jobs have theirs within a minute, at less than half of the rate of other requests."""
BURST = 100
MAXIMUM_TRIES = 8
"""Tries of one Event, about four minutes."""
LONGEST_PAUSE = 60.0
QUIET_SECONDS = 60.0
"""Time in which lost Events are one line of the log."""
FLUSH_SECONDS = 1.0
"""Time for the Events that wait at the end of the process. The Lease is released after it."""

_logger = logging.getLogger(__name__)

Outcome = Literal["written", "dropped"]


class EventMetrics(Protocol):
    """The writer reports its work here."""

    def events(self, outcome: Outcome, number: int) -> None:
        """`number` Events were written or dropped."""


class EventWriter:
    """Accepts Events at any time and writes them while `run` runs."""

    def __init__(
        self,
        api: ApiClient,
        identity: str,
        metrics: EventMetrics,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        exists: Callable[[Key, str], bool],
        buffer: EventBuffer | None = None,
    ) -> None:
        """`identity` names this replica in Events. `now` is the wall clock in UTC; `clock` is monotonic, in seconds.

        `exists` says if there is a FineTuneJob of this name and uid.
        """
        self._api = api
        self._identity = identity
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._exists = exists
        self._buffer = EventBuffer() if buffer is None else buffer
        self._bucket = TokenBucket(RATE, BURST, clock)
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._unknown = 0
        """1 while an Event is neither in the buffer nor counted."""
        self._written = WrittenEvents()
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 -- jitter, not a secret
        self._failures = 0
        self._logged = float("-inf")

    def record(self, job: JobRecord, transition: Transition) -> None:
        """Accept an Event about `job`. It returns at once and never fails."""
        self._drop(self._buffer.add(job, transition, self._now()), "more Events than can wait")
        self._changed.set()

    def forget(self, job: Key) -> None:
        """Forget what has been written about a FineTuneJob that does not exist any more."""
        self._written.forget(job)

    async def run(self) -> None:
        """Write Events until canceled. What still waits then is written in FLUSH_SECONDS, or else dropped and counted."""
        writing = asyncio.create_task(self._write_all())
        try:
            # A request that is on its way ends as an Event that is written or dropped, and never as neither.
            await asyncio.shield(writing)
        finally:
            self._closing.set()
            self._changed.set()
            await asyncio.wait({writing}, timeout=FLUSH_SECONDS)
            writing.cancel()
            await asyncio.wait({writing})
            self._logged = float("-inf")
            self._drop(self._unknown + len(self._buffer), "the process ends")

    async def _write_all(self) -> None:
        """Write Events one by one; when the process ends, until none waits or the API server takes none."""
        while (event := await self._next()) is not None:
            self._unknown = 1
            if not self._closing.is_set():
                await self._bucket.acquire(event.key.namespace)
            pause = await self._try(event)
            self._unknown = 0
            if pause:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
                if self._closing.is_set():
                    return

    async def _next(self) -> PendingEvent | None:
        """The next Event, as soon as there is one; None if none waits when the process ends."""
        while (event := self._buffer.take()) is None and not self._closing.is_set():
            self._changed.clear()
            await self._changed.wait()
        return event

    async def _try(self, event: PendingEvent) -> float:
        """Write an Event; returns the seconds to wait before the next one."""
        try:
            await self._write(event)
        except ApiError as error:
            if _is_transient(error):
                return self._keep(event, error)
            self._drop(1, str(error))
        except OperatorError as error:
            self._drop(1, str(error))
        except Exception:
            # The boundary: no error of an Event may end the process.
            _logger.exception("writing an Event failed")
            self._drop(1, "an error")
        else:
            self._failures = 0
            self._metrics.events("written", 1)
        return 0.0

    def _keep(self, event: PendingEvent, error: ApiError) -> float:
        """Keep the Event for a later try; returns the seconds until then."""
        tries = event.tries + 1
        if tries < MAXIMUM_TRIES:
            kept = PendingEvent(
                event.key, event.resource_version, event.first, event.last, event.count, tries
            )
            self._drop(self._buffer.put(kept), str(error))
        else:
            self._drop(1, str(error))
        self._failures += 1
        pause = min(2.0 ** min(self._failures, 10), LONGEST_PAUSE) * self._random.uniform(0.5, 1.0)
        return max(pause, error.retry_after)

    async def _write(self, event: PendingEvent) -> None:
        """Create the Event, or raise the count of an earlier one that is equal."""
        known = self._written.get(event.key)
        if known is not None:
            name, count = known
            try:
                await self._count(event, name, count + event.count)
            except ApiError as error:
                if _is_transient(error):
                    raise
                # It has expired, or the operator may not change Events.
            else:
                self._remember(event.key, name, count + event.count)
                return
        name = _name(event)
        await self._create(event, name)
        self._remember(event.key, name, event.count)

    def _remember(self, key: EventKey, name: str, count: int) -> None:
        # An Event that has waited for long may be about a job that is forgotten already.
        if self._exists((key.namespace, key.name), key.uid):
            self._written.put(key, name, count)

    async def _create(self, event: PendingEvent, name: str) -> None:
        body = _body(event, name, self._identity)
        try:
            await self._api.call("POST", events_path(event.key.namespace), body=body, aside=True)
        except ApiError as error:
            # An earlier try was accepted, although its answer was lost.
            if error.status != 409:
                raise

    async def _count(self, event: PendingEvent, name: str, count: int) -> None:
        body = {"count": count, "lastTimestamp": format_time(event.last)}
        path = f"{events_path(event.key.namespace)}/{name}"
        await self._api.call("PATCH", path, body=body, content_type=MERGE, aside=True)

    def _drop(self, number: int, cause: str) -> None:
        if number == 0:
            return
        self._metrics.events("dropped", number)
        now = self._clock()
        if now - self._logged >= QUIET_SECONDS:
            self._logged = now
            _logger.warning("%d Events are lost; nothing else depends on them: %s", number, cause)


def _is_transient(error: ApiError) -> bool:
    """True if a later try may succeed. 409 and 410 say that other writes, or the API server's history, were in the way."""
    return error.status in {0, 409, 410, 429} or error.status >= 500


def _name(event: PendingEvent) -> str:
    """The name of a new Event, equal in every try."""
    transition = event.key.transition
    parts = (event.key.uid, transition.type, transition.reason, transition.message, event.first.isoformat())
    return f"{event.key.name}.{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"


def _body(event: PendingEvent, name: str, identity: str) -> dict[str, Any]:
    key = event.key
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": key.name,
            "namespace": key.namespace,
            "uid": key.uid,
            "resourceVersion": event.resource_version,
        },
        "type": key.transition.type,
        "reason": key.transition.reason,
        "message": key.transition.message,
        "firstTimestamp": format_time(event.first),
        "lastTimestamp": format_time(event.last),
        "count": event.count,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": f"{GROUP}/{FIELD_MANAGER}",
        "reportingInstance": identity,
    }
