"""Run the TRAIN command repeatedly, stop or kill it at random moments, and let the last run finish.

Usage: `killed_train.py RUN_FILE RESULT_FILE SIGNAL SEED COUNT`. Each process is a fork of this one, which has only imported
the stage. So a start takes little time, and the signals arrive during the work. Half of them arrive in the middle of a random
report of progress, and the others a random number of Python calls after one. No moment depends on the speed of the machine.
Prints a JSON object: `ends` has [exit code or minus the signal, activity] of each process, and `steps` has the steps
that each process reported.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finetune_trainer.stages.train.stage  # noqa: F401 -- imported once for all forks
from finetune_trainer import runner
from finetune_trainer.__main__ import main as trainer
from finetune_trainer.telemetry.reporter import Reporter

_REPORTS = 12
_CALLS = 3000
"""About the Python calls of a training step of the tests' tiny model."""


@dataclass(frozen=True)
class Moment:
    """When a process sends itself the signal: so many Python calls of its main thread after a report of progress.

    The first report has number 1, and number 0 is the start.
    """

    report: int
    calls: int


def start(run: Path, result: Path, reports: Path, signal_number: int, moment: Moment | None) -> int:
    """Fork, run TRAIN, and return the process id."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            _record(reports, signal_number, moment)
            code = int(trainer(["train", "--run", str(run), "--termination-message", str(result)]))
        finally:
            os._exit(code)
    return process


def _record(reports: Path, signal_number: int, moment: Moment | None) -> None:
    """Write each report to a file, as one unbuffered write, and send the signal at its moment."""
    log = os.open(reports, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    seen = []

    class _Recorder(Reporter):
        def update(self, activity: str, step: int, total: int | None, **more: Any) -> None:
            super().update(activity, step, total, **more)
            seen.append(activity)
            os.write(log, f"{activity} {step if more.get('loss') is not None else 0}\n".encode())
            if moment is not None and len(seen) == moment.report:
                _signal_after(moment.calls, signal_number)

    setattr(runner, "Reporter", _Recorder)  # noqa: B010 -- the reports become visible outside of the process
    if moment is not None and moment.report == 0:
        _signal_after(moment.calls, signal_number)


def _signal_after(calls: int, signal_number: int) -> None:
    left = calls

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal left
        left -= event == "call"
        if left <= 0:
            sys.setprofile(None)
            os.kill(os.getpid(), signal_number)

    if calls:
        sys.setprofile(count)
    else:
        os.kill(os.getpid(), signal_number)


def attempt(*arguments: Any) -> tuple[list[Any], list[int]]:
    """Run one process; return its end and the steps that it reported."""
    _, status = os.waitpid(start(*arguments), 0)
    lines = [line.split() for line in Path(arguments[2]).read_text().splitlines()]
    activity = lines[-1][0] if lines else "none"
    return [os.waitstatus_to_exitcode(status), activity], [int(step) for _, step in lines if int(step)]


def main() -> None:
    """Interrupt runs COUNT times, then let one finish."""
    run, result, name, seed, count = sys.argv[1:]
    number = signal.Signals[name]
    reports = Path(result).with_suffix(".reports")
    chance = random.Random(seed)  # noqa: S311 -- moments of a test
    ends, steps = [], []
    for index in range(int(count)):
        calls = chance.randint(1, _CALLS) if index % 2 else 0
        moment = Moment(chance.randint(0, _REPORTS), calls)
        end, trained = attempt(Path(run), Path(result), reports, number, moment)
        ends.append(end)
        steps.append(trained)
        if end[0] == 0:
            break
    end, trained = attempt(Path(run), Path(result), reports, number, None)
    print(json.dumps({"ends": [*ends, end], "steps": [*steps, trained]}))


if __name__ == "__main__":
    main()
