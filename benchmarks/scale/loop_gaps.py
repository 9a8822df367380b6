"""Runs the operator with a heartbeat on its event loop, which records each time for which the loop did not turn.

A machine whose cores are all busy makes every thread wait for its turn. Linux counts that time, so it can be taken off.

`python loop_gaps.py FILE`, in any folder, starts the operator. A line of FILE has the time (time.monotonic) of a late
beat, its lateness, and the lateness without the time in which a thread of the process waited for a core.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

BEAT_SECONDS = 0.005
LATE_SECONDS = 0.005
"""Less is not recorded."""


@dataclass(frozen=True)
class Gap:
    """One late beat. All times are in seconds."""

    time: float
    """When the loop turned again, on the monotonic clock."""
    seconds: float
    own_seconds: float
    """Without the time for which the machine let the process wait."""


class Heartbeat:
    """Beats on `loop` and writes late beats to `file`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: TextIO) -> None:
        self._loop = loop
        self._file = file
        self._due = 0.0
        self._waited = 0

    def beat(self) -> None:
        """Compare the time with the one that was asked for, and ask again."""
        now, waited = time.monotonic(), waited_nanoseconds()
        late = now - self._due
        if self._due and late > LATE_SECONDS:
            own = max(late - (waited - self._waited) / 1e9, 0.0)
            self._file.write(f"{now:.6f} {late:.6f} {own:.6f}\n")
        self._waited = waited
        self._due = time.monotonic() + BEAT_SECONDS
        self._loop.call_later(BEAT_SECONDS, self.beat)


def waited_nanoseconds() -> int:
    """The time for which the threads of this process have been ready to run but had no core."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            text = (task / "schedstat").read_text()
        except OSError:
            # The thread has ended.
            continue
        total += int(text.split()[1])
    return total


def read_gaps(path: Path, begin: float, end: float) -> list[Gap]:
    """The gaps between two times of the monotonic clock."""
    with path.open() as file:
        found = [Gap(*map(float, line.split())) for line in file]
    return [gap for gap in found if begin <= gap.time and gap.time - gap.seconds <= end]


class _Policy(asyncio.DefaultEventLoopPolicy):
    """Puts the heartbeat on the loop of the main thread."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()
        if threading.current_thread() is threading.main_thread() and not self._file.closed:
            loop.call_soon(Heartbeat(loop, self._file).beat)
        return loop


def main(path: Path) -> None:
    """Run the operator."""
    from finetune_operator.__main__ import main as run  # noqa: PLC0415 -- in the process that is measured

    with path.open("w", buffering=1) as file:
        asyncio.set_event_loop_policy(_Policy(file))
        run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
