"""The trainer's command line in a process of its own, which also writes each step of its progress with the time.

`python -m benchmarks.gpu.marked_trainer MARKS train --run FILE ...`. A mark is a JSON line: seconds since the epoch,
activity, step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def mark(path: Path, activity: str, step: int) -> None:
    """Append a mark; it is in the file when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([time.time(), activity, step]) + "\n")


def read_marks(path: Path) -> list[tuple[float, str, int]]:
    """Return the marks so far; the last one may be incomplete, and is left out then."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [
        (float(at), str(activity), int(step)) for at, activity, step in map(json.loads, whole.splitlines())
    ]


def run(path: Path, arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    # These are imported here, because their time is part of the start that is measured.
    from finetune_trainer.__main__ import main  # noqa: PLC0415 -- see above
    from finetune_trainer.telemetry.reporter import Reporter  # noqa: PLC0415 -- see above

    update: Any = Reporter.update

    def marked(self: Any, activity: str, step: int, total: int | None, **more: Any) -> None:
        if activity == "LoadingModel" and not step:
            from benchmarks.gpu.older_torch import adapt  # noqa: PLC0415 -- torch is loaded by now

            adapt()
        mark(path, activity, step)
        update(self, activity, step, total, **more)

    Reporter.update = marked  # type: ignore[method-assign]  # the process belongs to the benchmark
    return int(main(arguments))


def run_and_exit(path: Path, arguments: list[str]) -> None:
    """Run the command line and end the process at once, as the trainer's own process does."""
    code = run(path, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_and_exit(Path(sys.argv[1]), sys.argv[2:])
