"""The figures of the scale benchmark that are computed and not just measured."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.scale.load import METADATA, FirstJobs, Load, accepted
from benchmarks.scale.loop_gaps import LATE_SECONDS, Gap, Heartbeat, read_gaps
from benchmarks.scale.soak import BATCHES, growth, slope, slope_interval

MEGABYTE = 2**20


def walk(rise: float, count: int, draw: random.Random) -> list[float]:
    """A line with noise whose neighbors are alike, as memory is."""
    noise = 0.0
    found = []
    for place in range(count):
        noise = 0.8 * noise + draw.gauss(0, 1)
        found.append(100 + rise * place + noise)
    return found


def test_the_slope_of_a_line_is_exact() -> None:
    line = [5 + 0.25 * place for place in range(4 * BATCHES)]
    assert slope(line) == pytest.approx(0.25)
    assert slope_interval(line) == pytest.approx((0.25, 0.25))


def test_the_interval_of_a_slope_holds_it_nearly_always_and_tells_growth_from_noise() -> None:
    draw = random.Random(7)  # noqa: S311 -- a sample, not a secret
    intervals = [slope_interval(walk(0.05, 200, draw)) for _ in range(300)]
    assert sum(low <= 0.05 <= high for low, high in intervals) > 0.85 * len(intervals)
    assert sum(low > 0 for low, _ in intervals) > 0.85 * len(intervals)


async def test_a_burst_counts_the_first_job_of_each_name_from_its_acceptance() -> None:
    class Events(Load):
        def __init__(self) -> None: ...

        async def watch(self, path: str, see: Callable[..., None], *, accept: str = "") -> None:
            assert (path.endswith("/jobs?labelSelector=job"), accept) == (True, METADATA)
            for kind, name, moment in (
                ("ADDED", "job-0", 12.0),
                ("ADDED", "job-0", 90.0),
                ("MODIFIED", "job-1", 13.0),
                ("ADDED", "job-1", 15.0),
            ):
                see(kind, {"metadata": {"labels": {"job": name}}}, moment)

    first = FirstJobs("job")
    async with first.watched(Events()):
        pass

    async def create(number: int) -> float:
        return 11.0 + number

    times = await accepted(range(2), create)
    assert first.seen == {"job-0": 12.0, "job-1": 15.0}
    assert first.figures(times, 10.0) == {
        "p50Seconds": 3.0,
        "p99Seconds": 3.0,
        "createSeconds": 2.0,
        "wholeSeconds": 5.0,
    }


def test_growth_counts_from_the_moment_at_which_all_caches_are_full() -> None:
    filling, full = [MEGABYTE * (100 + place) for place in range(60)], [160 * MEGABYTE] * 30
    found = growth([*filling, *full], warm=60, an_hour=720)
    assert (found["cachesFull"], found["samples"], found["megabytesAnHour"]) == (True, 30, 0.0)
    leaking = growth([*filling, *(MEGABYTE * (160 + place) for place in range(30))], warm=60, an_hour=720)
    assert leaking["megabytesAnHour"] == pytest.approx(720)


@pytest.mark.parametrize("warm", [0, 85])
def test_growth_while_caches_fill_is_told_as_such(warm: int) -> None:
    found = growth([MEGABYTE * (100 + place) for place in range(90)], warm, an_hour=720)
    assert (found["cachesFull"], found["samples"], found["megabytesAnHour"]) == (False, 60, 720.0)


def test_too_few_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 10 values, found 9"):
        slope_interval([1.0] * (BATCHES - 1))


async def test_a_loop_that_stands_still_has_a_gap_of_that_time(tmp_path: Path) -> None:
    path = tmp_path / "gaps"
    with path.open("w", buffering=1) as file:
        Heartbeat(asyncio.get_running_loop(), file).beat()
        await asyncio.sleep(0.02)
        begin = time.monotonic()
        time.sleep(0.1)  # noqa: ASYNC251 -- the fault that is to be found
        end = time.monotonic()
        await asyncio.sleep(0.02)
        largest = max(read_gaps(path, begin, end), key=lambda gap: gap.seconds)
        assert largest.seconds > 0.08
        assert 0 <= largest.own_seconds <= largest.seconds
        assert read_gaps(path, end + 60, end + 61) == []


def test_gaps_are_those_that_meet_the_given_times(tmp_path: Path) -> None:
    path = tmp_path / "gaps"
    path.write_text("10.5 0.1 0.05\n20.0 9.0 0.0\n")
    assert read_gaps(path, 10.45, 10.6) == [Gap(10.5, 0.1, 0.05)]
    assert read_gaps(path, 12.0, 12.1) == [Gap(20.0, 9.0, 0.0)]
    assert LATE_SECONDS < 0.05
