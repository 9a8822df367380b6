from __future__ import annotations

import asyncio

import pytest
from finetune_operator.cluster.workqueue import WorkQueue

from tests.support.clock import Clock


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
