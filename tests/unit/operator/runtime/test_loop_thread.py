from __future__ import annotations

import asyncio
import sys
import threading

import pytest
from finetune_operator.runtime.loop_thread import SWITCH_SECONDS, LoopThread


async def where() -> threading.Thread:
    return threading.current_thread()


async def test_work_runs_in_another_thread_and_returns_its_result() -> None:
    async with LoopThread("aside") as aside:
        thread = await aside.run(where())
        assert (thread.name, thread.daemon) == ("aside", True)
        assert thread is not threading.current_thread()
    assert not thread.is_alive()


async def test_work_goes_on_while_the_other_loop_is_busy() -> None:
    done = threading.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    async with LoopThread("aside") as aside:
        asyncio.run_coroutine_threadsafe(work(), aside.loop)
        assert done.wait(20), "this wait blocks the loop of the test"


async def test_threads_take_short_turns_meanwhile() -> None:
    before = sys.getswitchinterval()
    async with LoopThread("aside"):
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    assert sys.getswitchinterval() == pytest.approx(before)


async def test_an_error_of_the_work_is_raised() -> None:
    async def fail() -> None:
        raise OSError("the port is in use")

    async with LoopThread("aside") as aside:
        with pytest.raises(OSError, match="in use"):
            await aside.run(fail())
