from __future__ import annotations

import asyncio

import pytest
from finetune_operator.runtime.loop_lag import LASTING_TICKS, REMEMBERED_TICKS, LoopLag

from tests.support.virtual_time import VirtualLoop, run_virtual


def block(loop: VirtualLoop, seconds: float) -> None:
    """Let a callback take `seconds`."""
    loop._virtual.now += seconds


def measure(blocks: list[float]) -> LoopLag:
    """The lag after callbacks that take these seconds one after the other. For 0, a second passes in idleness."""

    async def main(loop: VirtualLoop) -> LoopLag:
        lag = LoopLag(loop.time)
        running = asyncio.ensure_future(lag.run())
        for seconds in blocks:
            await asyncio.sleep(0.001 if seconds else 1)
            block(loop, seconds)
        running.cancel()
        await asyncio.wait({running})
        return lag

    return run_virtual(main)


def test_an_idle_loop_is_in_time() -> None:
    lag = measure([0.0] * 30)
    assert lag.lasting == pytest.approx(0.0, abs=0.01)
    assert lag.largest == pytest.approx(0.0, abs=0.01)


def test_a_single_pause_shows_but_does_not_last() -> None:
    lag = measure([0.0] * 10 + [20.0] + [0.0] * 3)
    assert lag.largest == pytest.approx(19.5, abs=1)
    assert lag.lasting == pytest.approx(0.0, abs=0.01)


def test_a_loop_that_is_late_again_and_again_has_a_lasting_lag() -> None:
    lag = measure([8.0] * (3 * LASTING_TICKS))
    assert lag.lasting > 6


def test_too_few_measurements_say_nothing() -> None:
    lag = measure([8.0] * (LASTING_TICKS - 2))
    assert lag.lasting == 0
    assert lag.largest > 6


def test_old_pauses_are_forgotten() -> None:
    lag = measure([20.0] + [0.0] * (REMEMBERED_TICKS + 5))
    assert lag.largest == pytest.approx(0.0, abs=0.01)
