"""Kubernetes Events that wait to be written: repetitions are counted, namespaces take turns, and the number is bounded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from finetune_operator.observed.observation import JobRecord
from finetune_operator.status.events import Transition

CAPACITY = 4096
"""Events that may wait: a minute of them from thousands of jobs, in a few megabytes."""


@dataclass(frozen=True)
class EventKey:
    """What is equal in the repetitions of one Event."""

    namespace: str
    name: str
    uid: str
    transition: Transition


@dataclass(frozen=True)
class PendingEvent:
    """An Event about a FineTuneJob, which has happened `count` times between `first` and `last`."""

    key: EventKey
    resource_version: str
    first: datetime
    last: datetime
    count: int = 1
    tries: int = 0
    """Number of failed tries to write it."""


class EventBuffer:
    """Events by namespace, in the order in which they happened."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._waiting: dict[str, dict[EventKey, PendingEvent]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, job: JobRecord, transition: Transition, now: datetime) -> int:
        """Add an Event about `job`; returns the number of Events that are dropped for it."""
        key = EventKey(job.namespace, job.name, job.uid, transition)
        return self.put(PendingEvent(key, job.resource_version, now, now))

    def put(self, event: PendingEvent) -> int:
        """Add an Event, or add to the count of an equal one; returns the number of Events that are dropped for it."""
        queue = self._waiting.setdefault(event.key.namespace, {})
        known = queue.get(event.key)
        if known is not None:
            queue[event.key] = replace(
                known,
                first=min(known.first, event.first),
                last=max(known.last, event.last),
                count=known.count + event.count,
                tries=max(known.tries, event.tries),
            )
            return 0
        queue[event.key] = event
        self._length += 1
        if self._length <= self._capacity:
            return 0
        # The namespace with the most Events loses its oldest one, so that the others lose none for it.
        self._pop(max(self._waiting, key=lambda namespace: len(self._waiting[namespace])))
        return 1

    def take(self) -> PendingEvent | None:
        """Remove and return the oldest Event of the namespace whose turn it is; None if no Event waits."""
        if not self._waiting:
            return None
        namespace = next(iter(self._waiting))
        event = self._pop(namespace)
        if namespace in self._waiting:
            self._waiting[namespace] = self._waiting.pop(namespace)
        return event

    def _pop(self, namespace: str) -> PendingEvent:
        queue = self._waiting[namespace]
        event = queue.pop(next(iter(queue)))
        if not queue:
            del self._waiting[namespace]
        self._length -= 1
        return event
