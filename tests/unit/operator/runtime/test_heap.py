from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest
from finetune_operator.runtime.heap import TICKS_OF_A_FULL_ONE, Heap


class Node:
    """An object that may refer to itself."""

    def __init__(self) -> None:
        self.me: Node | None = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Python's own collector as it was, after the test."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_a_young_cycle_is_freed_and_what_survives_is_not_visited_again() -> None:
    heap = Heap()
    kept = [Node() for _ in range(1000)]
    lost = weakref.ref(Node())
    heap.tick()
    assert lost() is None
    assert gc.get_freeze_count() >= 1000
    visited = {id(each) for each in gc.get_objects()}
    assert not visited & {id(each) for each in kept}


def test_an_old_cycle_is_freed_by_a_full_collection() -> None:
    heap = Heap()
    heap.tick()
    node = Node()
    heap.tick()
    old = weakref.ref(node)
    del node
    heap.tick()
    assert old() is not None, "it is not visited"
    for _ in range(TICKS_OF_A_FULL_ONE - 2):
        heap.tick()
    assert old() is None


def test_an_old_object_without_a_cycle_is_freed_at_once() -> None:
    heap = Heap()
    node = Node()
    node.me = None
    heap.tick()
    old = weakref.ref(node)
    del node
    assert old() is None


async def test_python_makes_no_full_collection_meanwhile_and_does_so_afterwards() -> None:
    before = gc.get_threshold()
    running = asyncio.create_task(Heap().run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert gc.get_threshold()[2] > 10**9
    assert gc.get_freeze_count() > 0
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
