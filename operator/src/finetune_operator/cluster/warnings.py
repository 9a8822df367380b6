"""Reads from Events why children do not start: a quota, an admission policy or a volume may show nowhere else.

The number of requests is bounded whatever happens. A child whose cause is unknown is read every few seconds. One whose
cause is known, or whose pod is pulling its image, is read rarely. Many children of one namespace share their requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.cluster.client import PAGE
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.rounds import repeat_rounds
from finetune_operator.cluster.store import Store
from finetune_operator.errors import ApiError
from finetune_operator.observed.observation import Key
from finetune_operator.observed.warnings import (
    EventRecord,
    Unstarted,
    cause_of,
    has_passed,
    project_event,
    selector_of,
)

ROUND_SECONDS = 2.0
ROUND_REQUESTS = 10
"""Requests of one round: a tenth of the default rate limit, which all reads and writes share."""
UNKNOWN_SECONDS = 5.0
"""Time after which a child is read again whose cause is unknown. Together with a round it stays below 10 s."""
KNOWN_SECONDS = 30.0
DENIED_SECONDS = 600.0
SHARED = 4
"""Children of one namespace from which on they are read together."""
SHARED_PAGES = 10
"""Pages in one such read, at most."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Child:
    key: Key
    unstarted: Unstarted


class WarningReader:
    """Keeps the warnings in the store up to date and queues the jobs whose warnings have changed."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        wake: Callable[[Key], None],
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`now` is the wall clock in UTC; `clock` is monotonic, in seconds."""
        self._store = store
        self._cluster = cluster
        self._wake = wake
        self._now = now
        self._clock = clock
        self._due: dict[Unstarted, float] = {}
        self._allowed = 0
        self._denied_until = 0.0

    async def run(self) -> None:
        """Read until canceled."""
        await repeat_rounds(self._cluster, self.read_round, ROUND_SECONDS, "reading the events of children")

    async def read_round(self) -> None:
        """Read the children that are due, those of the namespace that waits longest first, within the allowed requests."""
        clock = self._clock()
        children = [_Child(key, each) for key, found in self._unstarted().items() for each in found]
        present = {child.unstarted for child in children}
        self._due = {each: due for each, due in self._due.items() if each in present}
        due = [child for child in children if self._due_time(child) <= clock]
        groups: dict[str, list[_Child]] = {}
        for child in sorted(due, key=self._due_time):
            groups.setdefault(child.key[0], []).append(child)
        # A large read may have used up the requests of later rounds.
        self._allowed = min(self._allowed, 0) + ROUND_REQUESTS
        for namespace, group in groups.items():
            if self._allowed <= 0 or not await self._read_group(namespace, group):
                return

    async def read(self, key: Key) -> dict[str, str]:
        """The present causes of one FineTuneJob's children by uid, for a decision that needs them now.

        During an outage, or without the permission to list Events, they are those that are already known.
        """
        found = self._store.unstarted(self._now()).get(key, [])
        await self._read_group(key[0], [_Child(key, each) for each in found], wake=False)
        causes = {each.uid: self._store.warning(key, each.uid) for each in found}
        return {uid: cause for uid, cause in causes.items() if cause}

    def _unstarted(self) -> Mapping[Key, list[Unstarted]]:
        return {} if self._clock() < self._denied_until else self._store.unstarted(self._now())

    def _due_time(self, child: _Child) -> float:
        return self._due.get(child.unstarted, 0.0)

    async def _read_group(self, namespace: str, group: Sequence[_Child], *, wake: bool = True) -> bool:
        """Read the children of one namespace; returns False if the API server does not answer or forbids it."""
        sources = {source for child in group for source in child.unstarted.sources}
        try:
            events = await (
                self._read_each(namespace, sources) if len(sources) < SHARED else self._read_shared(namespace)
            )
        except ApiError as error:
            self._allowed -= 1
            if error.status == 403:
                self._denied_until = self._clock() + DENIED_SECONDS
                _logger.warning("events must be listed to say why pods do not start: %s", error)
            else:
                _logger.debug("events of %s: %s", namespace, error)
            return False
        by_source: dict[str, list[EventRecord]] = {}
        for event in events:
            for source in event.sources:
                by_source.setdefault(source, []).append(event)
        for child in group:
            found = [event for source in child.unstarted.sources for event in by_source.get(source, ())]
            if self._note(child, found) and wake:
                self._wake(child.key)
        return True

    async def _read_each(self, namespace: str, sources: Iterable[str]) -> list[EventRecord]:
        found: list[EventRecord] = []
        for source in sorted(sources):
            self._allowed -= 1
            listed = await self._cluster.list_events(namespace, selector_of(source), project_event)
            found += listed.items
        return found

    async def _read_shared(self, namespace: str) -> list[EventRecord]:
        """The Warnings of a namespace, and the Events that tell a pull from a pod that waits for its volumes."""
        found: list[EventRecord] = []
        for fields in ("type=Warning", "involvedObject.kind=Pod,reason=Pulling"):
            listed = await self._cluster.list_events(
                namespace, fields, project_event, maximum_pages=SHARED_PAGES
            )
            self._allowed -= 1 + len(listed.items) // PAGE
            found += listed.items
        return found

    def _note(self, child: _Child, events: Sequence[EventRecord]) -> bool:
        """Store the cause that these Events show; returns True if it is new."""
        uid, since = child.unstarted.uid, child.unstarted.since
        cause = cause_of(events, since, self._store.warning(child.key, uid))
        settled = cause != "" or has_passed(events, since)
        self._due[child.unstarted] = self._clock() + (KNOWN_SECONDS if settled else UNKNOWN_SECONDS)
        return self._store.set_warning(child.key, uid, cause)
