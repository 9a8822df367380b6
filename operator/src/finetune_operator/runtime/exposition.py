"""The response to a scrape, made in a thread, so that the event loop keeps its lease and its watches meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from finetune_operator.cluster.store import Store
from finetune_operator.observed.activity import JobActivity
from finetune_operator.observed.settled import StoredJob
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.activity_series import ActivitySeries
from finetune_operator.runtime.families import Family, head
from finetune_operator.runtime.job_series import JobSeries

FAMILIES = {
    "finetunejobs": Family("FineTuneJobs by phase, including all that have ended.", "count", ("phase",))
}
"""The families that are rendered here."""
_END = b"# EOF\n"
"""The last line of OpenMetrics."""


@dataclass(frozen=True)
class Scrape:
    """A response, in parts that are written one after the other."""

    parts: Sequence[bytes]
    content_type: str


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
    ) -> None:
        """`now` is the wall clock in UTC. `refresh` brings the registry up to date, on the event loop.

        A job that has ended keeps its series for `retention`, so that scrapes see its last values.
        """
        self._registry = registry
        self._store = store
        self._now = now
        self._refresh = refresh
        self._activities = activities
        self._retention = retention
        self._activity_series = ActivitySeries()
        self._series = JobSeries()
        # One thread: scrapes take turns, and they share the lines of the jobs.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def scrape(self, accept: str) -> Scrape:
        """Render all series in the format that `accept` prefers."""
        self._refresh()
        # The store belongs to the event loop. The records in these lists never change.
        jobs = self._store.reported(self._now() - self._retention)
        activities = self._activities.of(jobs)
        phases = self._store.phases()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._render, accept, jobs, activities, phases)

    def close(self) -> None:
        """Let the thread end after its present work."""
        self._thread.shutdown(wait=False)

    def _render(
        self,
        accept: str,
        jobs: Sequence[StoredJob],
        activities: Sequence[JobActivity],
        phases: Counts[str],
    ) -> Scrape:
        encode, content_type = choose_encoder(accept)
        own = encode(self._registry)
        end = _END if own.endswith(_END) else b""
        parts = [
            own.removesuffix(_END),
            *self._series.render(jobs),
            *self._activity_series.render(activities),
            *_fleet(phases),
            end,
        ]
        return Scrape(parts, content_type)


def _fleet(phases: Counts[str]) -> list[bytes]:
    """The number of all jobs by phase."""
    lines = [f'finetunejobs{{phase="{phase}"}} {number}.0\n' for phase, number in sorted(phases.items())]
    return [head("finetunejobs", FAMILIES["finetunejobs"].help), "".join(lines).encode()]
