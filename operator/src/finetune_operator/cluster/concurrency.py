"""Does the same work for many namespaces, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

LISTED_AT_ONCE = 8
"""Namespaces that are listed at once. Each holds a page of whole objects, and the API server works for each."""


async def each_at_once(work: Callable[[str], Awaitable[object]], namespaces: Iterable[str]) -> None:
    """Do `work` for each namespace, LISTED_AT_ONCE at a time. The first error ends it."""
    waiting = iter(namespaces)

    async def take_turns() -> None:
        for namespace in waiting:
            await work(namespace)

    tasks = [asyncio.create_task(take_turns()) for _ in range(LISTED_AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
