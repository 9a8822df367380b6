from __future__ import annotations

import asyncio
import random

import pytest
from finetune_operator.cluster.workqueue import PATIENCE, SUPERSEDED, TURNS, WorkQueue
from finetune_operator.observed.urgency import Urgency

from tests.support.clock import Clock
from tests.support.virtual_time import VirtualLoop, run_virtual


class Metrics:
    """Counts the reports of the queue."""

    def __init__(self) -> None:
        self.adds = self.retries = 0
        self.waits: list[float] = []
        self.works: list[float] = []

    def added(self, depth: int) -> None:
        assert depth >= 0
        self.adds += 1

    def taken(self, depth: int, waited: float) -> None:
        assert depth >= 0
        self.waits.append(waited)

    def done(self, worked: float) -> None:
        self.works.append(worked)

    def retried(self) -> None:
        self.retries += 1


def make_queue() -> tuple[WorkQueue[str], Clock, Metrics]:
    clock, metrics = Clock(), Metrics()
    return WorkQueue(metrics, clock), clock, metrics


async def test_a_key_that_is_added_twice_is_delivered_once() -> None:
    queue, clock, metrics = make_queue()
    queue.add("a")
    queue.add("a")
    queue.add("b")
    clock.now += 2
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0
    assert metrics.adds == 2
    assert metrics.waits == [2, 2]


async def test_a_key_that_is_added_during_its_work_is_delivered_again_afterwards() -> None:
    queue, clock, metrics = make_queue()
    queue.add("a")
    await queue.get()
    queue.add("a")
    assert len(queue) == 0
    clock.now += 3
    assert queue.longest_work == 3
    queue.done("a")
    assert queue.longest_work == 0
    assert await queue.get() == "a"
    assert metrics.works == [3]


async def test_a_canceled_key_is_not_delivered_later_and_may_be_added_again() -> None:
    queue, clock, _ = make_queue()
    for key in ("a", "b"):
        queue.add_after(key, 10)
    queue.cancel("a")
    queue.cancel("never added")
    clock.now += 10
    assert await queue.get() == "b"
    assert len(queue) == 0
    queue.add_after("a", 5)
    clock.now += 5
    assert await queue.get() == "a"


async def test_times_that_no_key_waits_for_take_no_memory() -> None:
    """A deadline may lie days ahead, and each decision of a job has an earlier time again."""
    queue, clock, _ = make_queue()
    for number in range(50_000):
        queue.add_after(f"gone-{number}", 86_400)
        queue.cancel(f"gone-{number}")
        queue.add_after("a", 86_400 - number)
    queue.add_after("b", 86_400)
    # Only the private list shows what is kept.
    assert len(queue._delayed) < 2 * SUPERSEDED
    clock.now += 86_400
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_delayed_key_is_delivered_when_it_is_due_and_the_earlier_time_wins() -> None:
    queue, clock, _ = make_queue()
    queue.add_after("a", 50)
    queue.add_after("a", 10)
    queue.add_after("a", 20)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)
    clock.now += 10
    assert await queue.get() == "a"
    queue.done("a")
    clock.now += 100
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)


async def test_failures_increase_a_keys_delay_and_success_resets_it() -> None:
    queue, clock, metrics = make_queue()
    for delay in (0.005, 0.01, 0.02):
        queue.add_rate_limited("a")
        clock.now += delay * 0.9
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.001)
        clock.now += delay * 0.2
        assert await queue.get() == "a"
        queue.done("a")
    assert metrics.retries == 3
    queue.forget("a")
    queue.add_rate_limited("a")
    clock.now += 0.006
    assert await queue.get() == "a"


async def test_an_added_key_wakes_a_waiting_worker() -> None:
    queue, _, _ = make_queue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    assert await asyncio.wait_for(waiting, 5) == "a"


async def test_two_workers_never_have_the_same_key() -> None:
    queue, _, _ = make_queue()
    held: set[str] = set()
    worked: list[str] = []

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in held
            held.add(key)
            await asyncio.sleep(0)
            held.discard(key)
            worked.append(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(8)]
    for _ in range(50):
        for key in "abc":
            queue.add(key)
        await asyncio.sleep(0)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(queue) == 0
    for worker in workers:
        worker.cancel()
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert set(worked) == {"a", "b", "c"}


async def test_groups_take_turns() -> None:
    metrics = Metrics()
    queue: WorkQueue[str] = WorkQueue(metrics, Clock(), group_of=lambda key: key[0])
    for number in range(1000):
        queue.add(f"a{number}")
    queue.add("b0")
    queue.add("c0")
    assert [await queue.get() for _ in range(4)] == ["a0", "b0", "c0", "a1"]


async def test_a_group_never_has_all_workers() -> None:
    queue: WorkQueue[str] = WorkQueue(Metrics(), Clock(), group_of=lambda key: key[0], share=2)
    for key in ("a0", "a1", "a2"):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == ["a0", "a1"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("b0")
    assert await asyncio.wait_for(waiting, 5) == "b0"
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert len(queue) == 1
    queue.done("a0")
    assert await asyncio.wait_for(waiting, 5) == "a2"


async def take(queue: WorkQueue[str], count: int) -> list[str]:
    """The next keys, whose work ends at once."""
    found = []
    for _ in range(count):
        key = await queue.get()
        queue.done(key)
        found.append(key)
    return found


async def test_the_most_urgent_key_comes_first() -> None:
    queue, _, _ = make_queue()
    for urgency in sorted(Urgency, reverse=True):
        queue.add(urgency.name, urgency)
    assert await take(queue, 4) == ["ENDING", "EDIT", "PROGRESS", "RESYNC"]


async def test_a_key_that_is_added_twice_has_the_more_urgent_class() -> None:
    queue, _, metrics = make_queue()
    queue.add("a", Urgency.PROGRESS)
    queue.add("b", Urgency.RESYNC)
    queue.add("b", Urgency.ENDING)
    queue.add("b", Urgency.RESYNC)
    assert len(queue) == 2
    assert metrics.adds == 2
    assert await take(queue, 2) == ["b", "a"]
    assert len(queue) == 0


async def test_a_key_that_becomes_more_urgent_during_its_work_stays_so_afterwards() -> None:
    queue, _, _ = make_queue()
    queue.add("a", Urgency.RESYNC)
    await queue.get()
    queue.add("a", Urgency.RESYNC)
    queue.add("b", Urgency.EDIT)
    queue.add("a", Urgency.ENDING)
    assert len(queue) == 1
    queue.done("a")
    assert await take(queue, 2) == ["a", "b"]


async def test_a_failed_or_delayed_key_keeps_its_urgency() -> None:
    queue, clock, _ = make_queue()
    queue.add("a", Urgency.ENDING)
    await queue.get()
    assert queue.urgency_of("a") is Urgency.ENDING
    queue.add_rate_limited("a")
    queue.done("a")
    queue.add_after("b", 30, Urgency.ENDING)
    queue.add_after("b", 20, Urgency.RESYNC)
    queue.add_after("b", 25, Urgency.RESYNC)
    clock.now += 20
    queue.add("c", Urgency.EDIT)
    assert await take(queue, 3) == ["a", "b", "c"]
    assert queue.urgency_of("a") is Urgency.PROGRESS


async def test_an_overdue_key_waits_for_a_few_more_urgent_ones_and_never_delays_two() -> None:
    queue, clock, _ = make_queue()
    for number in range(3):
        queue.add(f"old-{number}", Urgency.RESYNC)
    clock.now += PATIENCE[Urgency.RESYNC] - 1
    for number in range(20):
        queue.add(f"end-{number}", Urgency.ENDING)
    assert not [key for key in await take(queue, 6) if key.startswith("old")], "it is not overdue yet"
    clock.now += 1
    order = await take(queue, 14)
    places = [place for place, key in enumerate(order) if key.startswith("old")]
    assert places == [TURNS, 2 * TURNS + 1]


def test_no_key_starves_under_a_flood_of_more_urgent_ones() -> None:
    async def main(loop: VirtualLoop) -> dict[str, float]:
        metrics = Metrics()
        queue: WorkQueue[str] = WorkQueue(metrics, loop.time)
        left: dict[str, float] = {}
        for urgency in (Urgency.EDIT, Urgency.PROGRESS, Urgency.RESYNC):
            queue.add(urgency.name, urgency)
        for number in range(10_000):
            queue.add(f"end-{number}", Urgency.ENDING)
            queue.add(f"more-{number}", Urgency.ENDING)
            key = await queue.get()
            await asyncio.sleep(0.02)
            queue.done(key)
            left.setdefault(key, loop.time())
        return left

    left = run_virtual(main)
    for urgency, patience in PATIENCE.items():
        assert left[urgency.name] <= patience + 2 * (TURNS + 1) * 0.02


@pytest.mark.parametrize("namespaces", [1, 40])
def test_a_resync_of_ten_thousand_keys_delays_an_end_by_at_most_one_reconcile(namespaces: int) -> None:
    """The resync is overdue already, all workers are busy, and the end comes at any moment."""
    work, workers, share = 0.02, 10, 8

    async def main(loop: VirtualLoop) -> tuple[list[int], list[float]]:
        queue: WorkQueue[str] = WorkQueue(
            Metrics(), loop.time, group_of=lambda key: key.partition("/")[0], share=share
        )
        draw = random.Random(3)  # noqa: S311 -- a fixed sequence, not a secret
        taken: list[str] = []
        for number in range(10_000):
            queue.add(f"{number % namespaces}/{number}", Urgency.RESYNC)
        await asyncio.sleep(2 * PATIENCE[Urgency.RESYNC])
        ended: dict[str, tuple[int, float]] = {}
        between: list[int] = []
        waits: list[float] = []

        async def worker() -> None:
            while True:
                key = await queue.get()
                if key in ended:
                    begin, time = ended.pop(key)
                    between.append(len(taken) - begin)
                    waits.append(loop.time() - time)
                taken.append(key)
                await asyncio.sleep(work)
                queue.done(key)

        tasks = [asyncio.create_task(worker()) for _ in range(workers)]
        for number in range(100):
            await asyncio.sleep(draw.uniform(0.05, 0.15))
            key = f"{draw.randrange(namespaces)}/end-{number}"
            ended[key] = (len(taken), loop.time())
            queue.add(key, Urgency.ENDING)
        await asyncio.sleep(0.1)
        assert len(queue) > 2000, "the resync goes on all the time"
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return between, waits

    between, waits = run_virtual(main)
    assert len(between) == 100
    assert max(between) <= 1
    assert max(waits) <= work * 1.01
