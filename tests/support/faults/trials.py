"""A life under one fault, and a life in which the operator is killed at one of its writes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from devcluster.layout import OPERATOR_NAMESPACE

from tests.support.faults.admin import Rejected
from tests.support.faults.calls import Call
from tests.support.faults.cells import Cell
from tests.support.faults.kinds import Fault, Kind
from tests.support.faults.lane import Lane
from tests.support.faults.life import LIFE_SECONDS, Life, Story
from tests.support.faults.proxy import Moment

QUIET_SECONDS = 15.0
"""Time without a hit after which no more of them are waited for."""
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases"


@dataclass(frozen=True)
class Result:
    """What a life under a fault has shown. `recovery` is in seconds; None if the fault never struck."""

    cell: Cell
    seconds: float
    hits: int
    recovery: float | None
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        recovery = "never hit" if self.recovery is None else f"recovered in {self.recovery:.1f} s"
        head = f"{self.cell!s:45} {self.seconds:5.1f} s, {self.hits} hits, {recovery}"
        return "\n    ".join([head, *self.problems])


async def live_under(lane: Lane, cell: Cell) -> Result:
    """Let a job live its whole life under a fault, and judge it."""
    await lane.ready()
    life, row, started = Life(lane, cell.row.story), cell.row, time.monotonic()
    fault = Fault(cell.kind, row.verb, row.resource, cell.count)
    if cell.kind is Kind.UNAUTHORIZED:
        await _refuse_the_old_token(lane, fault)
    if row.restarts:
        await lane.process.kill(resume=False)
    if row.resource == "leases" and row.verb == "POST":
        await lane.admin.unless_gone("DELETE", f"{_LEASES}/{lane.name}")
    if row.provoked is not None:
        lane.proxy.inject(Fault(*row.provoked, count=1))
    lane.proxy.inject(fault)

    problems: list[str] = []
    try:
        await asyncio.wait_for(_live(lane, life, cell, fault), LIFE_SECONDS + cell.bound + row.story.value)
    except (TimeoutError, Rejected) as error:
        problems.append(f"it did not end in time: {error!r}")
    lane.proxy.clear()
    end = time.monotonic()
    problems += await life.judge()
    if not fault.hits:
        return Result(cell, end - started, 0, None, (*problems, "the fault never struck"))
    # Without another request of the kind, the job's end is the recovery.
    recovery = max((fault.recovered or life.ended or end) - fault.hits[-1], 0.0)
    if recovery > cell.bound:
        problems.append(f"the recovery took {recovery:.1f} s, more than {cell.bound:.0f} s")
    return Result(cell, end - started, len(fault.hits), recovery, tuple(problems))


async def _refuse_the_old_token(lane: Lane, fault: Fault) -> None:
    """Replace the token at the first request that the fault meets.

    The process reads the file again every minute, so it would not meet a refusal of a token that was replaced long before.
    """
    token = await lane.new_token()

    def replace() -> None:
        fault.token = token
        lane.use(token)

    fault.first = replace


async def _live(lane: Lane, life: Life, cell: Cell, fault: Fault) -> None:
    await life.create()
    if cell.row.restarts:
        lane.process.start()
    await life.live(lambda: _is_past(fault))


def _is_past(fault: Fault) -> bool:
    """True if the fault has ended, or if it has struck and the operator has stopped asking."""
    if fault.recovered is not None or fault.kind in {Kind.DROPPED, Kind.DUPLICATED}:
        return True
    return bool(fault.hits) and time.monotonic() - fault.hits[-1] > QUIET_SECONDS and not fault.over


@dataclass(frozen=True)
class Step:
    """The write at which the operator is killed, counted from 1, before or after the API server handled it; 0 for none."""

    number: int
    moment: Moment

    def __str__(self) -> str:
        return f"killed {self.moment.value} write {self.number}" if self.number else "not killed"


@dataclass
class Writes:
    """Numbers the writes of a life in the order in which they begin, and knows that of a step.

    Writes may be under way at the same time, so a write may end after others have begun.
    """

    step: Step
    number: int = 0
    """Of the writes that have begun."""
    _chosen: Call | None = None

    def reach(self, call: Call, moment: Moment) -> bool:
        """Note a moment of a write; returns True if it is that of the step."""
        if moment is Moment.BEFORE:
            self.number += 1
            if self.number == self.step.number:
                self._chosen = call
        # Equal calls are different writes.
        return call is self._chosen and moment is self.step.moment


@dataclass(frozen=True)
class KillResult:
    """What a life with a kill has shown. `call` is the write at which it came; None if the life has fewer writes."""

    step: Step
    call: Call | None
    writes: int
    seconds: float
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.step}, {self.call or f'{self.writes} writes'}: {self.seconds:.1f} s"
        return "\n    ".join([head, *self.problems])


async def live_killed(lane: Lane, step: Step, story: Story = Story.PLAIN) -> KillResult:
    """Let a job live its whole life, kill the operator at one write, start it again, and judge."""
    await lane.ready()
    life, started = Life(lane, story), time.monotonic()
    writes = Writes(step)
    killed: list[Call] = []

    async def gate(call: Call, moment: Moment) -> bool:
        if killed or not is_step(call) or not writes.reach(call, moment):
            return True
        killed.append(call)
        await lane.process.kill()
        return False

    lane.proxy.gate = gate
    problems: list[str] = []

    async def live() -> None:
        await life.create()
        await life.live()

    try:
        await asyncio.wait_for(live(), 2 * LIFE_SECONDS + story.value)
    except (TimeoutError, Rejected) as error:
        problems.append(f"it did not end in time: {error!r}")
    lane.proxy.gate = None
    problems += await life.judge()
    seconds = time.monotonic() - started
    return KillResult(step, killed[0] if killed else None, writes.number, seconds, tuple(problems))


def is_step(call: Call) -> bool:
    """True for a write of a decision. Leases and Events are none, because nothing depends on one of them."""
    return call.changes and call.resource not in {"leases", "events"}
