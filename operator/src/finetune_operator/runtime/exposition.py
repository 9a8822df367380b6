"""The response to a scrape, made on an event loop of its own, so that neither loop waits long for the other one."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Counts
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from finetune_operator.cluster.store import Store
from finetune_operator.observed.activity import JobActivity
from finetune_operator.observed.packed import StoredJob
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.activity_series import ActivitySeries
from finetune_operator.runtime.families import Family, head
from finetune_operator.runtime.job_series import JobSeries

FAMILIES = {
    "finetunejobs": Family("FineTuneJobs by phase, including all that have ended.", "count", ("phase",))
}
"""The families that are rendered here."""
AHEAD_SECONDS = 5.0
"""Time between two looks for jobs whose lines have changed, which is less than most scrape intervals."""
PORTION = 25
"""Jobs whose lines are made ahead at once, in about a millisecond."""
REST_SECONDS = 0.002
LOOK_SECONDS = 5.0
"""Time for the operator's own event loop to hand over its jobs. A scrape lasts 10 s at most by default."""
_END = b"# EOF\n"
"""The last line of OpenMetrics."""

_logger = logging.getLogger(__name__)
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Scrape:
    """A response, in parts that are made one after the other."""

    parts: Iterator[bytes]
    content_type: str


@dataclass(frozen=True)
class _Snapshot:
    """What a scrape shows. Its records never change."""

    jobs: Sequence[StoredJob]
    activities: Sequence[JobActivity]
    phases: Counts[str]
    """The number of all jobs by phase."""


class Exposition:
    """Renders the operator's registry and the series of the jobs in `store`."""

    def __init__(
        self,
        registry: CollectorRegistry,
        store: Store,
        now: Callable[[], datetime],
        refresh: Callable[[], None],
        activities: Activities,
        retention: timedelta,
        allowed_labels: Collection[str] = (),
    ) -> None:
        """Create it on the event loop that the store belongs to. Its methods may run on one other loop.

        `now` is the wall clock in UTC. `refresh` brings the registry up to date. Both run on the store's loop.
        A job that has ended keeps its series for `retention`, so that scrapes see its last values. `allowed_labels` are
        the keys of labels for showback.
        """
        self._registry = registry
        self._store = store
        self._now = now
        self._refresh = refresh
        self._home = asyncio.get_running_loop()
        self._activities = activities
        self._retention = retention
        self._series = JobSeries(allowed_labels)
        self._activity_series = ActivitySeries()

    async def scrape(self, accept: str) -> Scrape:
        """All series in the format that `accept` prefers. Raises TimeoutError if the store's loop does not answer."""
        seen = await self._at_home(self._look)
        encode, content_type = choose_encoder(accept)
        return Scrape(self._parts(encode(self._registry), seen), content_type)

    async def prepare(self) -> None:
        """Make the lines of new and changed jobs ahead of scrapes, until canceled."""
        while True:
            await asyncio.sleep(AHEAD_SECONDS)
            try:
                await self._make_lines()
            except TimeoutError:
                continue
            except Exception:
                # The next scrape makes the lines, and it shows the error to whoever asks.
                _logger.exception("the metrics of jobs cannot be made ahead of scrapes")

    async def _make_lines(self) -> None:
        jobs = await self._at_home(self._reported)
        changed = self._series.changed(jobs)
        for start in range(0, len(changed), PORTION):
            portion = changed[start : start + PORTION]
            self._series.lines(portion)
            # The operator's own loop has its turn meanwhile.
            await asyncio.sleep(REST_SECONDS)
        self._series.forget_others(jobs)

    async def _at_home(self, read: Callable[[], Seen]) -> Seen:
        """What `read` returns on the loop of the store."""

        async def reading() -> Seen:
            return read()

        future = asyncio.run_coroutine_threadsafe(reading(), self._home)
        async with asyncio.timeout(LOOK_SECONDS):
            return await asyncio.wrap_future(future)

    def _reported(self) -> Sequence[StoredJob]:
        """The jobs that have series. Nothing of others is kept."""
        jobs = self._store.reported(self._now() - self._retention)
        self._activities.forget_others(jobs)
        return jobs

    def _look(self) -> _Snapshot:
        self._refresh()
        jobs = self._reported()
        return _Snapshot(jobs, self._activities.of(jobs), self._store.phases())

    def _parts(self, own: bytes, seen: _Snapshot) -> Iterator[bytes]:
        yield own.removesuffix(_END)
        yield from self._series.render(seen.jobs)
        yield from self._activity_series.render(seen.activities)
        self._activity_series.forget_others(seen.activities)
        yield _fleet(seen.phases)
        if own.endswith(_END):
            yield _END


def _fleet(phases: Counts[str]) -> bytes:
    """The number of all jobs by phase."""
    lines = [f'finetunejobs{{phase="{phase}"}} {number}.0\n' for phase, number in sorted(phases.items())]
    return head("finetunejobs", FAMILIES["finetunejobs"].help) + "".join(lines).encode()
