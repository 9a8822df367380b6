"""The Events that this replica has written, so that a repetition raises the count of an earlier one.

Those of a deleted job never come again, because an Event names the uid of its job. The number of the others is bounded:
if an Event is forgotten, its repetition is a new Event, and nothing else is lost.
"""

from __future__ import annotations

from collections import OrderedDict

from finetune_operator.cluster.event_buffer import EventKey
from finetune_operator.observed.observation import Key

MAXIMUM_KNOWN = 4096
"""Events that are known, in two to three megabytes: those of hundreds of jobs at work."""


class WrittenEvents:
    """Name and count of each Event, by FineTuneJob. The job that has had none for the longest time makes room."""

    def __init__(self, maximum: int = MAXIMUM_KNOWN) -> None:
        """Know at most `maximum` Events."""
        self._maximum = maximum
        self._jobs: OrderedDict[Key, dict[EventKey, tuple[str, int]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def get(self, key: EventKey) -> tuple[str, int] | None:
        """Name and count of the Event; None if it is not known."""
        return self._jobs.get((key.namespace, key.name), {}).get(key)

    def put(self, key: EventKey, name: str, count: int) -> None:
        """The Event of this name has been written, and has this count now."""
        self.remove(key)
        job = (key.namespace, key.name)
        self._jobs.setdefault(job, {})[key] = (name, count)
        self._jobs.move_to_end(job)
        self._length += 1
        if self._length > self._maximum:
            self._make_room()

    def remove(self, key: EventKey) -> None:
        """Forget one Event."""
        job = (key.namespace, key.name)
        held = self._jobs.get(job, {})
        if held.pop(key, None) is not None:
            self._length -= 1
            if not held:
                del self._jobs[job]

    def forget(self, job: Key) -> None:
        """Forget the Events of a FineTuneJob that does not exist any more."""
        self._length -= len(self._jobs.pop(job, ()))

    def _make_room(self) -> None:
        oldest, held = next(iter(self._jobs.items()))
        if len(self._jobs) > 1:
            self.forget(oldest)
        else:
            self.remove(next(iter(held)))
