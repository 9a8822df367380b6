from __future__ import annotations

import asyncio
import itertools

import pytest
from finetune_operator.cluster.rate_limiter import TokenBucket

from tests.support.virtual_time import VirtualLoop, run_virtual


async def waits(loop: VirtualLoop, bucket: TokenBucket, calls: int) -> list[object]:
    """Seconds from now at which each of `calls` calls in a row passes, as values to compare with."""
    start = loop.time()
    found: list[object] = []
    for _ in range(calls):
        await bucket.acquire()
        found.append(pytest.approx(loop.time() - start, abs=0.002))
    return found


def test_a_burst_passes_at_once_and_then_the_rate_applies() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(10, 3, loop.time)
        assert await waits(loop, bucket, 5) == [0, 0, 0, 0.1, 0.2]
        await asyncio.sleep(10)
        assert await waits(loop, bucket, 4) == [0, 0, 0, 0.1]

    run_virtual(main)


def test_tokens_never_exceed_the_burst() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(10, 2, loop.time)
        await asyncio.sleep(3600)
        assert await waits(loop, bucket, 3) == [0, 0, 0.1]

    run_virtual(main)


def test_a_quiet_flow_passes_a_thousand_callers_of_a_busy_one() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(50, 100, loop.time)
        busy = [asyncio.create_task(bucket.acquire("a")) for _ in range(1000)]
        await asyncio.sleep(0)
        assert sum(task.done() for task in busy) == 80, "a fifth of the burst is kept for the others"
        for _ in range(15):
            await bucket.acquire("b")
        assert loop.time() < 0.001
        for task in busy:
            task.cancel()

    run_virtual(main)


def test_busy_flows_take_turns() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(200, 1, loop.time)
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

    run_virtual(main)


def test_a_caller_that_gives_up_takes_no_token() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(100, 1, loop.time)
        await bucket.acquire("a")
        gone = asyncio.create_task(bucket.acquire("a"))
        await asyncio.sleep(0)
        gone.cancel()
        await bucket.acquire("a")
        assert loop.time() == pytest.approx(0.01, abs=0.002)

    run_virtual(main)


def test_a_pause_lets_nobody_pass_for_its_time() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(10, 100, loop.time)
        bucket.pause(3)
        bucket.pause(3)
        assert await waits(loop, bucket, 1) == [3], "two answers of one moment are one pause"
        await asyncio.sleep(30)
        assert await waits(loop, bucket, 1) == [0]

    run_virtual(main)


def test_the_rate_grows_slowly_after_an_outage() -> None:
    async def main(loop: VirtualLoop) -> list[int]:
        bucket = TokenBucket(50, 100, loop.time)
        bucket.restart()
        numbers = itertools.count()

        async def in_a_second(end: float) -> int:
            count = 0
            while loop.time() < end:
                await bucket.acquire(f"flow {next(numbers)}")
                count += 1
            return count

        return [await in_a_second(second + 1.0) for second in range(12)]

    rates = run_virtual(main)
    assert rates[0] <= 7
    assert rates[4] == pytest.approx(22, abs=2)
    assert rates[-1] == pytest.approx(50, abs=1)


async def order_of_calls(
    loop: VirtualLoop, bucket: TokenBucket, calls: list[tuple[str, str, bool]]
) -> list[tuple[float, str]]:
    """Time and name of each call in the order in which they pass. A call is a name, a flow and if it starts a job."""
    order: list[tuple[float, str]] = []

    async def call(name: str, flow: str, *, starts: bool) -> None:
        await bucket.acquire(flow, starts=starts)
        order.append((loop.time(), name))

    await asyncio.gather(*(call(name, flow, starts=starts) for name, flow, starts in calls))
    return order


def test_what_starts_a_job_goes_before_what_records_one() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(100, 1, loop.time)
        await bucket.acquire("a")
        calls = [("status", "a", False)] * 5 + [("job", "a", True)] * 5
        order = [name for _, name in await order_of_calls(loop, bucket, calls)]
        assert order == ["job"] * 5 + ["status"] * 5

    run_virtual(main)


def test_a_call_that_records_a_job_does_not_starve_behind_those_that_start_one() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(10, 1, loop.time)
        await bucket.acquire("a")
        calls = [("status", "a", False)] * 3 + [("job", "a", True)] * 200
        order = await order_of_calls(loop, bucket, calls)
        times = [time for time, name in order if name == "status"]
        assert min(times) >= 5
        assert max(times) < 8, "an overdue call gets every fifth turn"

    run_virtual(main)


def test_what_starts_a_job_does_not_go_before_another_flow() -> None:
    async def main(loop: VirtualLoop) -> None:
        bucket = TokenBucket(100, 1, loop.time)
        await bucket.acquire("a")
        calls = [("job", "a", True)] * 20 + [("status", "b", False)] * 5
        order = [name for _, name in await order_of_calls(loop, bucket, calls)]
        assert order.count("status") == order[:11].count("status")

    run_virtual(main)
