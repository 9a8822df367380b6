"""Steps that a thread makes ahead: their values, their errors, and the end of the thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from datasets import Dataset
from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.stages.train.batching import Batching
from finetune_trainer.stages.train.passes import Step, StepCollator
from finetune_trainer.stages.train.prefetch import THREAD, Prefetcher

ROWS = [
    {"input_ids": [10, 11, 12], "labels": [IGNORED, IGNORED, 12]},
    {"input_ids": [20, 21, 22, 23], "labels": [20, IGNORED, 22, 23]},
    {"input_ids": [30, 31], "labels": [30, 31]},
    {"input_ids": [40, 41, 42], "labels": [IGNORED, 41, 42]},
]
COLLATE = StepCollator(Batching("Packed", 8, 2))
SECONDS = 20.0


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def joined() -> bool:
    """Return whether all threads end."""
    for thread in threads():
        thread.join(SECONDS)
    return not threads()


def never() -> None:
    """Check nothing."""


def prefetcher(collate: Callable[[Sequence[Any]], Step] = COLLATE, *, pin: bool = False) -> Prefetcher:
    return Prefetcher(Dataset.from_list(ROWS), collate, pin=pin)


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    assert joined()


def test_steps_are_made_in_a_thread_and_equal_those_of_the_collator() -> None:
    made: list[str] = []

    def collate(rows: Sequence[Any]) -> Step:
        made.append(threading.current_thread().name)
        return COLLATE(rows)

    ahead = prefetcher(collate)
    begun = [ahead(places) for places in ([2, 0], [3, 1])]
    found = [ahead.wait(step, never) for step in begun]
    ahead.close()
    assert len(set(made)) == 1
    assert made[0].startswith(THREAD)
    for step, places in zip(found, ([2, 0], [3, 1]), strict=True):
        expected = COLLATE([ROWS[place] for place in places])
        assert (step.examples, step.learned) == (expected.examples, expected.learned)
        for one, other in zip(step.passes, expected.passes, strict=True):
            assert torch.equal(one.input_ids, other.input_ids)
            assert torch.equal(one.positions, other.positions)
            assert torch.equal(one.targets, other.targets)
            assert one.input_ids.dtype == other.input_ids.dtype


def test_no_random_state_changes() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ahead = prefetcher()
    ahead.wait(ahead([0, 1]), never)
    ahead.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_reaches_the_caller_and_the_next_step_is_made() -> None:
    ahead = prefetcher()
    broken, whole = ahead([0, 17]), ahead([1])
    with pytest.raises(IndexError):
        ahead.wait(broken, never)
    assert ahead.wait(whole, never).examples == 1
    ahead.close()


def test_a_timeout_in_the_making_is_an_error_and_no_reason_to_wait_longer() -> None:
    def collate(_rows: Sequence[Any]) -> Step:
        raise TimeoutError("the disk does not answer")

    ahead = prefetcher(collate)
    with pytest.raises(TimeoutError, match="disk"):
        ahead.wait(ahead([0]), never)
    ahead.close()


def test_a_request_to_stop_does_not_wait_for_a_step_that_hangs() -> None:
    goes_on = threading.Event()
    made: list[int] = []

    def collate(rows: Sequence[Any]) -> Step:
        goes_on.wait(SECONDS)
        made.append(len(rows))
        return COLLATE(rows)

    def check() -> None:
        raise KeyboardInterrupt

    ahead = prefetcher(collate)
    hanging, _waiting = ahead([0]), ahead([0, 1])
    with pytest.raises(KeyboardInterrupt):
        ahead.wait(hanging, check)
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < SECONDS / 2
    goes_on.set()
    assert joined()
    assert made == [1], "the step that had not begun is dropped"


def test_without_another_thread_the_caller_makes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ahead = prefetcher()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert ahead.wait(ahead([0, 2]), never).examples == 2
    assert ahead.wait(ahead([1]), never).examples == 1
    ahead.close()


@dataclass(frozen=True)
class Pinned(Step):
    """A step that tells that it was pinned; pinning itself needs a GPU."""

    def pin_memory(self) -> Step:
        return Step((), -1, 0)


@pytest.mark.parametrize("pin", [True, False])
def test_steps_are_pinned_if_asked_for(*, pin: bool) -> None:
    ahead = prefetcher(lambda rows: Pinned((), len(rows), 0), pin=pin)
    assert ahead.wait(ahead([0]), never).examples == (-1 if pin else 1)
    ahead.close()
