"""Run the PREPARE command again and again, kill it at given moments, at last let it end.

`killed_prepare.py RUN_FILE RESULT_FILE MOMENTS` where MOMENTS is a JSON list of [activity, seconds]: the process is
killed that long after its progress file first names the activity or a later one. Each process is a fork of this one,
which has only imported the stage: a start takes milliseconds and the kills reach into the work. Prints how each
process ended: [exit code or minus the signal, activity].
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import finetune_trainer.stages.prepare.stage  # noqa: F401 -- imported once for all forks
from finetune_trainer.__main__ import main as trainer

ORDER = (
    "Starting",
    "FetchingDataset",
    "ProvingRows",
    "FetchingModel",
    "Quantizing",
    "AnalysingDataset",
    "Finished",
)


def start(run: Path, result: Path) -> int:
    """Fork and run PREPARE in a session of its own, as a container does; return its process id."""
    process = os.fork()
    if process == 0:
        os.setsid()
        code = 70
        try:
            code = int(trainer(["prepare", "--run", str(run), "--termination-message", str(result)]))
        finally:
            os._exit(code)
    return process


def activity(progress: Path) -> str:
    """Return the activity that the progress file names."""
    try:
        return str(json.loads(progress.read_text(encoding="utf-8"))["activity"])
    except (OSError, ValueError):
        return "Starting"


def kill_at(process: int, progress: Path, wanted: str, seconds: float) -> list[Any]:
    """Kill the process and all it started at the moment asked for; return how it ended."""
    kill_time = None
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return [os.waitstatus_to_exitcode(status), activity(progress)]
        if kill_time is None and ORDER.index(activity(progress)) >= ORDER.index(wanted):
            kill_time = time.monotonic() + seconds
        if kill_time is not None and time.monotonic() >= kill_time:
            break
        time.sleep(0.002)
    found = activity(progress)
    os.killpg(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return [os.waitstatus_to_exitcode(status), found]


def main() -> None:
    """Kill at each moment, then run to the end."""
    run, result = Path(sys.argv[1]), Path(sys.argv[2])
    progress = Path(json.loads(run.read_text(encoding="utf-8"))["workspace"]["path"]) / "progress.json"
    ends: list[list[Any]] = []
    for wanted, seconds in json.loads(sys.argv[3]):
        progress.unlink(missing_ok=True)
        ends.append(kill_at(start(run, result), progress, wanted, seconds))
    _, status = os.waitpid(start(run, result), 0)
    ends.append([os.waitstatus_to_exitcode(status), activity(progress)])
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
