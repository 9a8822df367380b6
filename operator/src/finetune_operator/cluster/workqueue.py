"""A queue of keys with client-go's semantics: a key waits once, and two workers never have the same key."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item", bound=Hashable)

BASE_DELAY = 0.005
MAXIMUM_DELAY = 1000.0


class QueueMetrics(Protocol):
    """The queue reports its work here; times are in seconds."""

    def added(self, depth: int) -> None:
        """A key was added, and `depth` keys are waiting now."""

    def taken(self, depth: int, waited: float) -> None:
        """A key was taken after it had waited for `waited`, and `depth` keys are still waiting."""

    def done(self, worked: float) -> None:
        """The work on a key ended after `worked`."""

    def retried(self) -> None:
        """The work on a key failed and will be repeated."""


class WorkQueue(Generic[Item]):
    """Keys to reconcile.

    A key that is added during its work is delivered again afterwards. The delay of a failed key grows with its own
    failures: 5 ms * 2^failures, at most 1000 s.

    Groups take turns, for example namespaces: a group with thousands of keys does not delay another one by more than
    one key.
    """

    def __init__(
        self,
        metrics: QueueMetrics,
        clock: Callable[[], float],
        *,
        group_of: Callable[[Item], Hashable] = lambda _: None,
        share: int | None = None,
    ) -> None:
        """`clock` is monotonic, in seconds. At most `share` workers have keys of one group; None stands for any number."""
        self._metrics = metrics
        self._clock = clock
        self._group_of = group_of
        self._share = share
        self._ready: dict[Hashable, deque[Item]] = {}
        self._depth = 0
        self._working: Counter[Hashable] = Counter()
        self._dirty: dict[Item, float] = {}
        self._processing: dict[Item, float] = {}
        self._failures: dict[Item, int] = {}
        self._delayed: list[tuple[float, int, Item]] = []
        self._due: dict[Item, float] = {}
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return self._depth

    @property
    def longest_work(self) -> float:
        """Duration of the longest current work in seconds; 0 while no worker is busy."""
        return self._clock() - min(self._processing.values()) if self._processing else 0.0

    def add(self, item: Item) -> None:
        """Deliver `item` as soon as possible."""
        if item in self._dirty:
            return
        self._dirty[item] = self._clock()
        if item not in self._processing:
            self._make_ready(item)
        self._metrics.added(self._depth)

    def add_after(self, item: Item, delay: float) -> None:
        """Deliver `item` in `delay` seconds. An earlier time for the same item takes precedence."""
        if delay <= 0:
            self.add(item)
            return
        due = self._clock() + delay
        known = self._due.get(item)
        if known is not None and known <= due:
            return
        self._due[item] = due
        heapq.heappush(self._delayed, (due, next(self._order), item))
        self._changed.set()

    def add_rate_limited(self, item: Item, longest: float = MAXIMUM_DELAY) -> None:
        """Deliver `item`, whose work failed, after a delay that grows with its failures, at most `longest` seconds."""
        failures = self._failures.get(item, 0)
        self._failures[item] = failures + 1
        self._metrics.retried()
        self.add_after(item, min(BASE_DELAY * 2 ** min(failures, 30), longest))

    def forget(self, item: Item) -> None:
        """Reset the delay of `item`, because its work succeeded (client-go's Forget)."""
        self._failures.pop(item, None)

    async def get(self) -> Item:
        """Wait for a key. The caller must call `done` afterwards."""
        while True:
            wait = self._promote_due()
            for group in self._next_groups():
                item = self._take(group)
                if self._ready:
                    self._changed.set()
                return item
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def done(self, item: Item) -> None:
        """End the work on `item`. It is delivered again if it was added meanwhile."""
        started = self._processing.pop(item)
        group = self._group_of(item)
        self._working[group] -= 1
        if not self._working[group]:
            del self._working[group]
        self._metrics.done(self._clock() - started)
        if item in self._dirty:
            self._make_ready(item)
        if self._ready:
            self._changed.set()

    def _make_ready(self, item: Item) -> None:
        self._ready.setdefault(self._group_of(item), deque()).append(item)
        self._depth += 1
        self._changed.set()

    def _next_groups(self) -> Iterator[Hashable]:
        """The groups of which a worker may take a key now, in the order of their turns."""
        share = self._share
        return (group for group in self._ready if share is None or self._working[group] < share)

    def _take(self, group: Hashable) -> Item:
        """Take the next key of `group`, whose next turn comes after those of all others."""
        waiting = self._ready.pop(group)
        item = waiting.popleft()
        if waiting:
            self._ready[group] = waiting
        self._depth -= 1
        self._working[group] += 1
        now = self._clock()
        self._processing[item] = now
        self._metrics.taken(self._depth, now - self._dirty.pop(item))
        return item

    def _promote_due(self) -> float | None:
        """Make due keys ready; returns the seconds until the next one is due, None if there is none."""
        now = self._clock()
        while self._delayed:
            due, _, item = self._delayed[0]
            if self._due.get(item) != due:
                heapq.heappop(self._delayed)
                continue
            if due > now:
                return due - now
            heapq.heappop(self._delayed)
            del self._due[item]
            self.add(item)
        return None
