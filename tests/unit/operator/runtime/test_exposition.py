from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import JobRecord
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.exposition import Exposition
from finetune_operator.runtime.job_series import JobSeries
from finetune_operator.runtime.metrics import OperatorMetrics
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.operator import NOW
from tests.support.world import World, started

RETENTION = timedelta(minutes=10)
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class Scraped:
    """A store with the exposition of its jobs."""

    def __init__(self) -> None:
        self.now: datetime = NOW
        registry = CollectorRegistry()
        metrics = OperatorMetrics(registry)
        metrics.workers(8, lambda: 3.0)
        self.store = Store(GpuStore((), allow_time_slicing=False))
        self.exposition = Exposition(
            registry,
            self.store,
            lambda: self.now,
            metrics.refresh,
            Activities(self.store, RETENTION),
            RETENTION,
        )

    def add(self, job: JobRecord, count: int, name: str) -> None:
        """Store `count` copies of a job."""
        for number in range(count):
            self.store.put_job(replace(job, name=f"{name}{number}", uid=f"{name}{number}"))

    async def text(self, accept: str = "") -> str:
        """The response to a scrape."""
        return b"".join((await self.exposition.scrape(accept)).parts).decode()


def ended() -> World:
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        world.succeed(stage)
    world.settle()
    return world


def series(text: str) -> int:
    return sum(not line.startswith("#") for line in text.splitlines())


async def test_jobs_that_ended_long_ago_have_no_series_of_their_own_but_are_counted() -> None:
    scraped = Scraped()
    alone = series(await scraped.text())
    scraped.add(started(Stage.TRAIN).job, 3, "active")
    scraped.add(ended().job, 500, "ended")
    just_after = await scraped.text()
    assert 'finetunejob_info{name="ended499"' in just_after
    scraped.now = NOW + RETENTION + timedelta(seconds=1)
    later = await scraped.text()
    assert 'name="ended' not in later
    assert later.count("finetunejob_info{") == 3
    assert 'finetunejobs{phase="Succeeded"} 500.0' in later
    assert 'finetunejobs{phase="Training"} 3.0' in later
    assert series(later) <= alone + 3 * 40 + 2
    assert series(await scraped.text()) == series(later)


async def test_a_job_that_changes_after_its_end_has_series_only_if_it_runs_again() -> None:
    scraped, job = Scraped(), ended().job
    scraped.now = NOW + RETENTION * 2
    scraped.store.put_job(job)
    assert "finetunejob_info{" not in await scraped.text()
    scraped.store.put_job(replace(job, resource_version="9999"))
    assert "finetunejob_info{" not in await scraped.text()
    scraped.store.put_job(replace(job, uid="new", resource_version="10000", status={}))
    assert (await scraped.text()).count("finetunejob_info{") == 1


async def test_both_formats_are_valid_and_have_the_same_jobs() -> None:
    scraped = Scraped()
    scraped.add(ended().job, 2, "ended")
    plain = {family.name: family.samples for family in parse_text(await scraped.text())}
    open_text = await scraped.text(OPENMETRICS)
    families = {family.name: family.samples for family in parse_openmetrics(open_text)}  # type: ignore[no-untyped-call]  # not annotated by the library
    assert open_text.endswith("# EOF\n")
    assert len(families["finetunejob_info"]) == 2
    for name in ("finetunejob_info", "finetunejob_status_condition", "finetunejobs"):
        assert families[name] == plain[name]
    assert plain["workqueue_longest_running_processor_seconds"][0].value == 3


async def test_series_are_rendered_in_another_thread_while_the_loop_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rendering waits for the event loop here, so on the loop it would never end."""
    scraped, rendering, worked = Scraped(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    scraped.add(started(Stage.TRAIN).job, 1, "active")
    original = JobSeries.render

    def waiting(self: JobSeries, jobs: list[JobRecord]) -> list[bytes]:
        loop.call_soon_threadsafe(rendering.set)
        assert worked.wait(20), "the event loop must go on"
        return original(self, jobs)

    monkeypatch.setattr(JobSeries, "render", waiting)
    scrape = asyncio.create_task(scraped.text())
    await rendering.wait()
    worked.set()
    assert "finetunejob_info{" in await scrape
    scraped.exposition.close()
