from __future__ import annotations

import asyncio
import time

import pytest
from finetune_operator.cluster.rate_limiter import TokenBucket

from tests.support.clock import Clock


def test_a_burst_passes_at_once_and_then_the_rate_applies() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 3, clock)
    assert [bucket.reserve() for _ in range(3)] == [0, 0, 0]
    assert bucket.reserve() == pytest.approx(0.1)
    assert bucket.reserve() == pytest.approx(0.2)
    clock.now += 10
    assert [bucket.reserve() for _ in range(3)] == [0, 0, 0]
    assert bucket.reserve() == pytest.approx(0.1)


async def test_a_caller_with_a_token_does_not_wait() -> None:
    clock = Clock()
    bucket = TokenBucket(0.001, 1, clock)
    await bucket.acquire()
    assert bucket.reserve() == pytest.approx(1000), "the next one would wait"


def test_tokens_never_exceed_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 2, clock)
    clock.now += 3600
    assert [bucket.reserve() for _ in range(3)] == [0, 0, pytest.approx(0.1)]


async def passed(tasks: list[asyncio.Task[None]]) -> int:
    """Number of callers that have passed by now."""
    await asyncio.sleep(0)
    return sum(task.done() for task in tasks)


async def test_a_quiet_flow_passes_a_thousand_callers_of_a_busy_one() -> None:
    bucket = TokenBucket(50, 100, time.monotonic)
    busy = [asyncio.create_task(bucket.acquire("a")) for _ in range(1000)]
    assert await passed(busy) == 80, "a fifth of the burst is kept for the others"
    for _ in range(15):
        await asyncio.wait_for(bucket.acquire("b"), 0.05)
    for task in busy:
        task.cancel()


async def test_busy_flows_take_turns() -> None:
    bucket = TokenBucket(200, 1, time.monotonic)
    order: list[str] = []

    async def call(flow: str) -> None:
        await bucket.acquire(flow)
        order.append(flow)

    calls = [asyncio.create_task(call("a")) for _ in range(12)]
    await asyncio.sleep(0)
    calls += [asyncio.create_task(call("b")) for _ in range(4)]
    await asyncio.gather(*calls)
    assert order.index("b") <= 4
    assert [flow for flow in order[:10] if flow == "b"] == ["b"] * 4


async def test_a_caller_that_gives_up_takes_no_token() -> None:
    bucket = TokenBucket(100, 1, time.monotonic)
    await bucket.acquire("a")
    gone = asyncio.create_task(bucket.acquire("a"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait_for(bucket.acquire("a"), 1)


def test_a_pause_lets_nobody_pass_for_its_time() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 100, clock)
    bucket.pause(3)
    bucket.pause(3)
    assert bucket.reserve() == pytest.approx(3), "two answers of one moment are one pause"
    clock.now += 30
    assert bucket.reserve() == 0


def test_the_rate_grows_slowly_after_an_outage() -> None:
    clock = Clock()
    bucket = TokenBucket(50, 100, clock)
    bucket.restart()

    def in_a_second() -> int:
        count = 0
        for _ in range(100):
            clock.now += 0.01
            while bucket._may_take(bucket._flow(f"flow {clock.now} {count}")):
                bucket.reserve()
                count += 1
        return count

    rates = [in_a_second() for _ in range(12)]
    assert rates[0] <= 7
    assert rates[4] == pytest.approx(22, abs=2)
    assert rates[-1] == pytest.approx(50, abs=1)
