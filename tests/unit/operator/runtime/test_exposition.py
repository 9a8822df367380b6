from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import JobRecord
from finetune_operator.observed.packed import StoredJob
from finetune_operator.runtime import exposition
from finetune_operator.runtime.activities import Activities
from finetune_operator.runtime.exposition import PORTION, Exposition
from finetune_operator.runtime.job_series import JobSeries
from finetune_operator.runtime.loop_thread import LoopThread
from finetune_operator.runtime.metrics import OperatorMetrics
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.operator import NOW, make_progress
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
        self.activities = Activities(self.store)
        self.exposition = Exposition(
            registry,
            self.store,
            lambda: self.now,
            metrics.refresh,
            self.activities,
            RETENTION,
        )

    def add(self, job: JobRecord, count: int, name: str) -> None:
        """Store `count` copies of a job."""
        for number in range(count):
            self.store.put_job(replace(job, name=f"{name}{number}", uid=f"{name}{number}"))

    async def text(self, accept: str = "") -> str:
        """The response to a scrape."""
        return b"".join((await self.exposition.scrape(accept)).parts).decode()


class Made:
    """Counts the lines that are made and that are kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.kept = 0
        self._changed = asyncio.Event()
        lines, forget = JobSeries.lines, JobSeries.forget_others

        def counting_lines(series: JobSeries, jobs: Collection[StoredJob]) -> list[Any]:
            self.made += len(series.changed(jobs))
            return lines(series, jobs)

        def counting_forget(series: JobSeries, jobs: Collection[StoredJob]) -> None:
            forget(series, jobs)
            self.kept = len(series)
            self._changed.set()

        monkeypatch.setattr(JobSeries, "lines", counting_lines)
        monkeypatch.setattr(JobSeries, "forget_others", counting_forget)
        monkeypatch.setattr(exposition, "AHEAD_SECONDS", 0.01)

    async def until(self, *, made: int, kept: int) -> None:
        """Wait until so many lines have been made in all, and so many are kept."""
        async with asyncio.timeout(20):
            while (self.made, self.kept) != (made, kept):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def preparing(exposed: Exposition) -> AsyncIterator[None]:
    """Lines are made ahead, during a `with` block."""
    task = asyncio.create_task(exposed.prepare())
    yield
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


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


async def test_the_last_numbers_of_train_stay_as_long_as_the_series_of_its_job() -> None:
    scraped, name = Scraped(), "finetunejob_step_loss{"
    job = started(Stage.MERGE).job
    scraped.store.put_job(job)
    scraped.activities.report(job.uid, make_progress(Stage.TRAIN))
    scraped.now = NOW + 10 * RETENTION
    assert name in await scraped.text(), "MERGE may wait for long"
    scraped.store.put_job(replace(ended().job, resource_version="9999"))
    assert name not in await scraped.text()
    assert len(scraped.activities) == 0


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


async def test_lines_are_made_ahead_of_a_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    scraped, lines, active = Scraped(), Made(monkeypatch), started(Stage.TRAIN).job
    number = 2 * PORTION + 1
    scraped.add(active, number, "active")
    async with preparing(scraped.exposition):
        await lines.until(made=number, kept=number)
        assert (await scraped.text()).count("finetunejob_info{") == number
        assert lines.made == number, "the scrape makes no line again"
        changed = replace(active, name="active0", uid="active0", resource_version="9999")
        scraped.store.put_job(changed)
        await lines.until(made=number + 1, kept=number)


async def test_lines_of_jobs_that_are_gone_are_not_kept_without_a_scrape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scraped, lines = Scraped(), Made(monkeypatch)
    scraped.add(ended().job, 10, "ended")
    async with preparing(scraped.exposition):
        await lines.until(made=10, kept=10)
        scraped.now = NOW + RETENTION + timedelta(seconds=1)
        await lines.until(made=10, kept=0)


async def test_a_scrape_on_another_loop_waits_for_the_store_and_not_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scraped = Scraped()
    scraped.add(started(Stage.TRAIN).job, 1, "active")
    async with LoopThread("metrics") as aside:
        assert "finetunejob_info{" in await aside.run(scraped.text())
        monkeypatch.setattr(exposition, "LOOK_SECONDS", 0.01)
        late = asyncio.run_coroutine_threadsafe(scraped.text(), aside.loop)
        # The store's loop is busy: it does not go on before the other one has given up.
        assert isinstance(late.exception(20), TimeoutError)


async def test_the_store_is_read_and_refreshed_by_its_own_thread_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scraped, seen, home = Scraped(), set[threading.Thread](), threading.current_thread()
    original = Store.reported

    def reported(self: Store, since: datetime) -> list[StoredJob]:
        seen.add(threading.current_thread())
        return original(self, since)

    monkeypatch.setattr(Store, "reported", reported)
    async with LoopThread("metrics") as aside:
        await aside.run(scraped.text())
    assert seen == {home}
