"""Run the PREPARE command repeatedly, kill it at given moments, and let the last run finish.

Usage: `killed_prepare.py RUN_FILE RESULT_FILE MOMENTS`. MOMENTS is a JSON list of [activity, seconds].
The process is killed this many seconds after its progress file first names the activity or a later one.
Each process is a fork of this one, which has only imported the stage. So a start takes milliseconds, and the kills
happen during the work. Prints the end of each process: [exit code or minus the signal, activity].
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
    """Fork and run PREPARE in a new session, as a container does, and return its process id."""
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
    """Kill the process and its children at the requested moment, and return its exit status."""
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
    """Kill a run at each moment, then let one finish."""
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
