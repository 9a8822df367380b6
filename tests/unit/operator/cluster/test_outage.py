from __future__ import annotations

import asyncio

import pytest
from finetune_operator.cluster.outage import LONGEST_DELAY, Outage

from tests.support.clock import Clock


def make_outage() -> tuple[Outage, Clock, list[str]]:
    clock = Clock()
    recovered: list[str] = []
    return Outage(clock, lambda: 0.5, lambda: recovered.append("once")), clock, recovered


async def test_nobody_waits_without_an_outage() -> None:
    outage, _, recovered = make_outage()
    await asyncio.wait_for(outage.wait(), 1)
    outage.answered()
    assert recovered == []


async def test_one_caller_at_a_time_tries_and_an_answer_releases_all() -> None:
    outage, clock, recovered = make_outage()
    outage.failed("refused")
    assert outage.ongoing
    clock.now += 60
    waiting = [asyncio.create_task(outage.wait()) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert [task.done() for task in waiting].count(True) == 1
    outage.answered()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert recovered == ["once"]


async def test_tries_become_rarer_up_to_a_limit_and_obey_the_servers_time() -> None:
    outage, clock, _ = make_outage()
    delays = []
    for _ in range(8):
        outage._next_try = 0.0
        outage.failed("refused")
        delays.append(outage._next_try - clock.now)
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == LONGEST_DELAY
    outage.failed("busy", 40)
    assert outage._next_try == clock.now + 40


def test_an_outage_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    outage, clock, _ = make_outage()
    for _ in range(600):
        outage.failed("refused")
        clock.now += 1
    assert len(caplog.records) == 10
    outage.answered()
    assert "answers again after 600 s" in caplog.records[-1].message
    assert len(caplog.records) == 11


def test_a_connection_that_flaps_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    outage, clock, _ = make_outage()
    for _ in range(60):
        outage.failed("refused")
        clock.now += 0.5
        outage.answered()
        clock.now += 0.5
    assert len(caplog.records) == 2, "the outage and its end"
