from __future__ import annotations

import asyncio

import pytest
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.rounds import repeat_rounds

from tests.support.virtual_time import VirtualLoop, run_virtual


class ClusterWithOutage(Cluster):
    """A cluster whose API server answers from `end` on, in seconds of the loop's clock."""

    def __init__(self, loop: VirtualLoop, end: float) -> None:
        self._loop, self._end = loop, end

    async def await_server(self) -> None:
        await asyncio.sleep(max(0.0, self._end - self._loop.time()))


@pytest.mark.parametrize("outage", [0.0, 30.0])
def test_a_round_that_fails_is_said_and_the_next_one_comes(
    caplog: pytest.LogCaptureFixture, outage: float
) -> None:
    async def main(loop: VirtualLoop) -> list[float]:
        begin = loop.time()
        rounds: list[float] = []

        async def read_round() -> None:
            rounds.append(loop.time() - begin)
            if len(rounds) == 2:
                raise ValueError("nobody expects it")

        cluster = ClusterWithOutage(loop, begin + outage)
        repeating = asyncio.create_task(repeat_rounds(cluster, read_round, 5.0, "reading signs"))
        await asyncio.sleep(outage + 12)
        repeating.cancel()
        return rounds

    assert run_virtual(main) == pytest.approx([outage, outage + 5, outage + 10], abs=0.01)
    assert caplog.text.count("reading signs failed") == 1
