from __future__ import annotations

import asyncio

import pytest
from finetune_operator.cluster.concurrency import LISTED_AT_ONCE, each_at_once

NAMESPACES = [f"team-{number}" for number in range(3 * LISTED_AT_ONCE + 1)]


async def test_each_namespace_has_its_turn_and_only_some_at_one_time() -> None:
    done: list[str] = []
    running = most = 0

    async def work(namespace: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(namespace)

    await each_at_once(work, NAMESPACES)
    assert sorted(done) == sorted(NAMESPACES)
    assert most == LISTED_AT_ONCE


async def test_the_first_error_ends_the_others() -> None:
    begun: list[str] = []

    async def work(namespace: str) -> None:
        begun.append(namespace)
        if namespace == "team-1":
            raise ValueError(namespace)
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="team-1"):
        await each_at_once(work, NAMESPACES)
    before = len(begun)
    await asyncio.sleep(0.01)
    assert len(begun) == before == LISTED_AT_ONCE
