"""The response to a scrape, made in a thread, so that the event loop keeps its lease and its watches meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from finetune_operator.cluster.store import Store
from finetune_operator.observed.settled import StoredJob
from finetune_operator.runtime.cost_series import CostSeries
from finetune_operator.runtime.job_series import JobSeries

SETTLED = timedelta(minutes=10)
"""Time for which a job that has ended keeps its series: a few scrapes, so that its last values are seen."""
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
        allowed_labels: Collection[str] = (),
    ) -> None:
        """`now` is the wall clock in UTC. `refresh` brings the registry up to date, on the event loop.

        `allowed_labels` are the keys of labels for showback.
        """
        self._registry = registry
        self._store = store
        self._now = now
        self._refresh = refresh
        self._series = JobSeries()
        self._costs = CostSeries(allowed_labels)
        # One thread: scrapes take turns, and they share the lines of the jobs.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def scrape(self, accept: str) -> Scrape:
        """Render all series in the format that `accept` prefers."""
        self._refresh()
        # The store belongs to the event loop. The records in these lists never change.
        jobs = self._store.reported(self._now() - SETTLED)
        phases = self._store.phases()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._render, accept, jobs, phases)

    def close(self) -> None:
        """Let the thread end after its present work."""
        self._thread.shutdown(wait=False)

    def _render(self, accept: str, jobs: Sequence[StoredJob], phases: Counts[str]) -> Scrape:
        encode, content_type = choose_encoder(accept)
        own = encode(self._registry)
        end = _END if own.endswith(_END) else b""
        return Scrape(
            [
                own.removesuffix(_END),
                *self._series.render(jobs),
                *self._costs.render(jobs),
                *_fleet(phases),
                end,
            ],
            content_type,
        )


def _fleet(phases: Counts[str]) -> list[bytes]:
    """The number of all jobs by phase."""
    head = "# HELP finetunejobs FineTuneJobs by phase, including all that have ended.\n# TYPE finetunejobs gauge\n"
    lines = [f'finetunejobs{{phase="{phase}"}} {number}.0\n' for phase, number in sorted(phases.items())]
    return [head.encode(), "".join(lines).encode()]
