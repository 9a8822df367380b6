"""Lives many seeds, in one process or in several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

from tests.support.simulation.life import Outcome, live
from tests.support.simulation.plan import draw_plan


def _live_one(kinds: Sequence[str] | None, faults: int | None, seed: int) -> Outcome:
    """One life without its trace."""
    begin = time.process_time()
    outcome = live(draw_plan(seed, kinds, faults=faults))
    return replace(outcome, trace=(), work=time.process_time() - begin)


def live_all(
    seeds: Sequence[int], kinds: Sequence[str] | None, faults: int | None, processes: int
) -> Iterator[Outcome]:
    """All lives, in the order of their seeds."""
    run = partial(_live_one, kinds, faults)
    if processes == 1:
        yield from map(run, seeds)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(run, seeds, chunksize=10)
