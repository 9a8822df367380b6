"""A queue of keys with client-go's semantics: a key waits once, and two workers never have the same key.

The most urgent keys come first, and none waits for ever.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from finetune_operator.observed.urgency import Urgency

Item = TypeVar("Item", bound=Hashable)

BASE_DELAY = 0.005
MAXIMUM_DELAY = 1000.0
PATIENCE = {Urgency.EDIT: 1.0, Urgency.PROGRESS: 10.0, Urgency.RESYNC: 60.0}
"""Seconds after which a waiting key is overdue.

A user sees the delay of an edit, a progress report comes every few seconds, and a full list every few minutes.
"""
SUPERSEDED = 1024
"""Times that an earlier one has replaced and that may wait beside as many again as there are delayed keys."""
TURNS = 4
"""Keys that go before an overdue one. So overdue keys get a fifth of the work, and delay a more urgent key by one."""


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


class _Lane(Generic[Item]):
    """The waiting keys of one urgency. Groups take turns."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, dict[Item, None]] = {}
        self._since: dict[Item, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    @property
    def oldest(self) -> float:
        """The time since which the first key waits; infinite without keys."""
        return next(iter(self._since.values()), float("inf"))

    def add(self, group: Hashable, item: Item, since: float) -> None:
        self._groups.setdefault(group, {})[item] = None
        self._since[item] = since

    def remove(self, group: Hashable, item: Item) -> None:
        del self._since[item]
        del self._groups[group][item]
        if not self._groups[group]:
            del self._groups[group]

    def take(self, allowed: Callable[[Hashable], bool]) -> Item | None:
        """Remove and return the next key of an allowed group, whose next turn then comes after those of all others."""
        for group, items in self._groups.items():
            if allowed(group):
                item = next(iter(items))
                self._groups[group] = self._groups.pop(group)
                self.remove(group, item)
                return item
        return None


class WorkQueue(Generic[Item]):
    """Keys to reconcile.

    A key that is added during its work is delivered again afterwards. The delay of a failed key grows with its own
    failures: 5 ms * 2^failures, at most 1000 s.

    More urgent keys come first. A key that is added twice has the more urgent class of both. Among keys of one class,
    groups take turns, for example namespaces: a group with thousands of keys does not delay another one by more than
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
        self._lanes: dict[Urgency, _Lane[Item]] = {urgency: _Lane() for urgency in Urgency}
        self._passed = 0
        """Keys that went before an overdue one since the last overdue key."""
        self._working: Counter[Hashable] = Counter()
        self._dirty: dict[Item, tuple[float, Urgency]] = {}
        self._processing: dict[Item, tuple[float, Urgency]] = {}
        self._failures: dict[Item, int] = {}
        self._delayed: list[tuple[float, int, Item]] = []
        self._due: dict[Item, tuple[float, Urgency]] = {}
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def longest_work(self) -> float:
        """Duration of the longest current work in seconds; 0 while no worker is busy."""
        started = min((since for since, _ in self._processing.values()), default=None)
        return 0.0 if started is None else self._clock() - started

    def add(self, item: Item, urgency: Urgency = Urgency.PROGRESS) -> None:
        """Deliver `item` as soon as its urgency allows."""
        known = self._dirty.get(item)
        if known is None:
            self._dirty[item] = (self._clock(), urgency)
            if item not in self._processing:
                self._make_ready(item)
            self._metrics.added(len(self))
        elif urgency < known[1]:
            if item not in self._processing:
                self._lanes[known[1]].remove(self._group_of(item), item)
            self._dirty[item] = (known[0], urgency)
            if item not in self._processing:
                self._make_ready(item)

    def add_after(self, item: Item, delay: float, urgency: Urgency = Urgency.PROGRESS) -> None:
        """Deliver `item` in `delay` seconds. An earlier time and a higher urgency of the same item take precedence."""
        if delay <= 0:
            self.add(item, urgency)
            return
        due = self._clock() + delay
        known = self._due.get(item)
        if known is not None:
            urgency = min(urgency, known[1])
            if known[0] <= due:
                self._due[item] = (known[0], urgency)
                return
        self._due[item] = (due, urgency)
        heapq.heappush(self._delayed, (due, next(self._order), item))
        if len(self._delayed) > 2 * len(self._due) + SUPERSEDED:
            self._drop_superseded()
        self._changed.set()

    def add_rate_limited(self, item: Item, longest: float = MAXIMUM_DELAY) -> None:
        """Deliver `item`, whose work failed, after a delay that grows with its failures, at most `longest` seconds.

        It keeps the urgency of this work.
        """
        failures = self._failures.get(item, 0)
        self._failures[item] = failures + 1
        self._metrics.retried()
        self.add_after(item, min(BASE_DELAY * 2 ** min(failures, 30), longest), self.urgency_of(item))

    def urgency_of(self, item: Item) -> Urgency:
        """The urgency with which a worker has `item`; `PROGRESS` if none has it."""
        return self._processing.get(item, (0.0, Urgency.PROGRESS))[1]

    def forget(self, item: Item) -> None:
        """Reset the delay of `item`, because its work succeeded (client-go's Forget)."""
        self._failures.pop(item, None)

    def cancel(self, item: Item) -> None:
        """Do not deliver `item` at a later time, because nothing is left to do for it. One that is ready stays."""
        self._due.pop(item, None)

    async def get(self) -> Item:
        """Wait for a key. The caller must call `done` afterwards."""
        while True:
            wait = self._promote_due()
            item = self._take()
            if item is not None:
                if len(self):
                    self._changed.set()
                return item
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def done(self, item: Item) -> None:
        """End the work on `item`. It is delivered again if it was added meanwhile."""
        started, _ = self._processing.pop(item)
        group = self._group_of(item)
        self._working[group] -= 1
        if not self._working[group]:
            del self._working[group]
        self._metrics.done(self._clock() - started)
        if item in self._dirty:
            self._make_ready(item)
        if len(self):
            self._changed.set()

    def _make_ready(self, item: Item) -> None:
        since, urgency = self._dirty[item]
        self._lanes[urgency].add(self._group_of(item), item, since)
        self._changed.set()

    def _take(self) -> Item | None:
        """Take the next key that a worker may have now; None if there is none."""
        overdue = self._overdue()
        order = list(Urgency)
        if overdue is not None and self._passed >= TURNS:
            order.insert(0, overdue)
        for urgency in order:
            item = self._lanes[urgency].take(self._may_work)
            if item is not None:
                self._passed = self._passed + 1 if overdue is not None and urgency < overdue else 0
                self._begin(item)
                return item
        return None

    def _overdue(self) -> Urgency | None:
        """The class whose first key has waited for the most of its patience, and longer than it; None if none has."""
        now = self._clock()
        shares = {
            urgency: (now - self._lanes[urgency].oldest) / patience for urgency, patience in PATIENCE.items()
        }
        longest = max(shares, key=lambda urgency: shares[urgency])
        return longest if shares[longest] >= 1 else None

    def _may_work(self, group: Hashable) -> bool:
        return self._share is None or self._working[group] < self._share

    def _begin(self, item: Item) -> None:
        self._working[self._group_of(item)] += 1
        now = self._clock()
        since, urgency = self._dirty.pop(item)
        self._processing[item] = (now, urgency)
        self._metrics.taken(len(self), now - since)

    def _drop_superseded(self) -> None:
        """Forget the times that an earlier one has replaced: they may lie days ahead."""
        held: dict[Item, tuple[float, int, Item]] = {}
        for due, order, item in sorted(self._delayed):
            if item in self._due and self._due[item][0] == due:
                held.setdefault(item, (due, order, item))
        self._delayed = list(held.values())

    def _promote_due(self) -> float | None:
        """Make due keys ready; returns the seconds until the next one is due, None if there is none."""
        now = self._clock()
        while self._delayed:
            due, _, item = self._delayed[0]
            known = self._due.get(item)
            if known is None or known[0] != due:
                heapq.heappop(self._delayed)
                continue
            if due > now:
                return due - now
            heapq.heappop(self._delayed)
            del self._due[item]
            self.add(item, known[1])
        return None
