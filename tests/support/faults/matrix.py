"""Runs the trials on several lanes at once, and prints the fault matrix as a table."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

from tests.support.faults.admin import Admin
from tests.support.faults.cells import Cell
from tests.support.faults.kinds import Kind
from tests.support.faults.kubelet import Kubelet
from tests.support.faults.lane import Lane
from tests.support.faults.proxy import Moment
from tests.support.faults.trials import KillResult, Result, Step, live_killed, live_under

SELDOM, OFTEN = 600, 10
"""Seconds between two full lists: the default, and the least for lost events, which nothing else can show."""

Item = TypeVar("Item")
Found = TypeVar("Found")


async def run_cells(kubeconfig: Path, cells: Sequence[Cell], folder: Path, *, lanes: int) -> list[Result]:
    """Run all cells, those of lost events on operators that list often. Returns the results in the order of the cells."""
    async with Admin(kubeconfig) as admin, Kubelet(admin) as kubelet:
        found = await asyncio.gather(
            *(
                Pool(admin, kubelet, folder, number, resync).run(
                    # The slowest first.
                    sorted(
                        (cell for cell in cells if (cell.kind is Kind.DROPPED) is (resync == OFTEN)),
                        key=lambda cell: -cell.bound,
                    ),
                    live_under,
                )
                for resync, number in ((SELDOM, lanes), (OFTEN, 1))
            )
        )
    order = {cell: number for number, cell in enumerate(cells)}
    return sorted((result for part in found for result in part), key=lambda result: order[result.cell])


async def run_kills(kubeconfig: Path, folder: Path, *, lanes: int) -> list[KillResult]:
    """Kill the operator before and after each write of a life. The first result is a life without a kill."""
    async with Admin(kubeconfig) as admin, Kubelet(admin) as kubelet:
        calm = await Pool(admin, kubelet, folder, 1, SELDOM).run([Step(0, Moment.BEFORE)], live_killed)
        steps = [Step(number, moment) for number in range(1, calm[0].writes + 1) for moment in Moment]
        return calm + await Pool(admin, kubelet, folder, lanes, SELDOM).run(steps, live_killed)


class Pool:
    """Several lanes that take the next trial as soon as they have ended one."""

    def __init__(self, admin: Admin, kubelet: Kubelet, folder: Path, lanes: int, resync: int) -> None:
        """`lanes` is their number, `resync` the time between two full lists of their operators, in seconds."""
        self._admin = admin
        self._kubelet = kubelet
        self._folder = folder
        self._number = lanes
        self._resync = resync

    async def run(
        self, items: Sequence[Item], trial: Callable[[Lane, Item], Awaitable[Found]]
    ) -> list[Found]:
        """Run one trial for each item. The results come in the order in which they end, and each is printed."""
        waiting = deque(items)
        results: list[Found] = []

        async def work(lane: Lane) -> None:
            while waiting:
                result = await trial(lane, waiting.popleft())
                print(result, flush=True)
                results.append(result)

        async with AsyncExitStack() as stack:
            lanes = [
                await stack.enter_async_context(
                    Lane(
                        f"faults-{uuid.uuid4().hex[:6]}",
                        self._admin,
                        self._kubelet,
                        self._folder,
                        self._resync,
                    )
                )
                for _ in range(min(self._number, len(items)))
            ]
            async with asyncio.TaskGroup() as group:
                for lane in lanes:
                    group.create_task(work(lane))
        return results


def table(results: Sequence[Result]) -> str:
    """A line for each verb and resource, a column for each kind of fault, and the seconds until the recovery."""
    kinds = [kind for kind in Kind if any(result.cell.kind is kind for result in results)]
    by_cell = {(str(result.cell.row), result.cell.kind): result for result in results}
    rows = list(dict.fromkeys(str(result.cell.row) for result in results))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{kind.value:>13}" for kind in kinds)]
    lines += [
        f"{row:<{width}}" + "".join(f"{_shown(by_cell.get((row, kind))):>13}" for kind in kinds)
        for row in rows
    ]
    return "\n".join(lines)


def _shown(result: Result | None) -> str:
    if result is None:
        return "-"
    return "FAILED" if result.problems else f"{result.recovery:.1f}"
