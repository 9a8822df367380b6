"""Prefetching: a thread reads the rows of the next step and makes its tensors while the device computes the last one.

A thread suffices: it spends its time in numpy, Arrow and copies, not in Python. A process would load all libraries again,
and would send each step through shared memory. The order of rows is drawn in the main thread, so that prefetching
changes no random state.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from finetune_trainer.stages.train.passes import Step

THREAD = "prefetch"
"""The beginning of the thread's name."""
_POLL_SECONDS = 0.1


class Prefetcher:
    """Makes steps of rows in a thread, in the order of the calls.

    It is the collator of a loader whose items are the places of rows. The loader of accelerate collates one batch ahead of
    the one that it yields, so at most two steps are in memory: that of the loop and the next one.
    """

    def __init__(
        self, rows: Any, collate: Callable[[Sequence[Mapping[str, Any]]], Step], *, pin: bool
    ) -> None:
        """Read `rows`, a dataset with `input_ids` and `labels`. With `pin`, the tensors are in pinned memory."""
        # Rows as Python lists take three times as long, and hold up the main thread.
        self._rows = rows.with_format("arrow")
        self._collate = collate
        self._pin = pin
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, places: Sequence[int]) -> Future[Step]:
        """Begin to make the step of the rows at `places`."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, THREAD)
        try:
            return self._threads.submit(self._make, places)
        except RuntimeError:
            # The container may start no more threads. Working here only takes training's time.
            self.close()
            done: Future[Step] = Future()
            done.set_result(self._make(places))
            return done

    def wait(self, step: Future[Step], check: Callable[[], None]) -> Step:
        """Return the step, or raise the error that ended its making. `check` is called while it is not done."""
        while not step.done():
            check()
            wait([step], _POLL_SECONDS)
        return step.result()

    def close(self) -> None:
        """Drop what has not begun, and let the thread end after the step that it makes; do not wait for it."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _make(self, places: Sequence[int]) -> Step:
        table = self._rows[list(places)]
        rows = [
            {"input_ids": ids.values.to_numpy(), "labels": labels.values.to_numpy()}
            for ids, labels in zip(table["input_ids"], table["labels"], strict=True)
        ]
        step = self._collate(rows)
        return step.pin_memory() if self._pin else step
