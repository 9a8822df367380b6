"""Runs a measurement in child processes: one that hangs, crashes or breaks the device ends alone, and the rest goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Literal

from benchmarks.gpu.context import AbsentError, Context
from benchmarks.gpu.lines import Line, Status, shorten
from benchmarks.gpu.plan import Case, Measurement, limit, missing_values, next_group

Method = Literal["forkserver", "spawn"]
PRELOAD = "benchmarks.gpu.preload"
DRY_VARIABLE = "FINETUNE_BENCHMARK_DRY"
"""Set in a dry run, in which the preload may import everything."""
_ENDING_SECONDS = 10.0
_Outcome = tuple[Status, str, dict[str, Any], float]


def start_method(context: Context, seconds: float = 60.0) -> Method:
    """Return how children start: as copies of a process that has imported most packages, if that is safe.

    A copy cannot use a GPU that the copied process has touched. Then every child starts from nothing, which costs about
    ten seconds each.
    """
    if context.dry:
        os.environ[DRY_VARIABLE] = "1"
    multiprocessing.set_forkserver_preload([PRELOAD])
    forking = multiprocessing.get_context("forkserver")
    receiver, sender = forking.Pipe(duplex=False)
    process = forking.Process(target=_report_fork, args=(sender, context))
    process.start()
    sender.close()
    try:
        usable = receiver.poll(seconds) and bool(receiver.recv())
    except EOFError:
        usable = False
    finally:
        _end(process)
    return "forkserver" if usable else "spawn"


def _report_fork(connection: Connection, context: Context) -> None:
    _redirect(context)
    torch: Any = import_module("torch")
    # Without a GPU there is nothing that a copy could not use.
    connection.send(context.dry or not torch.cuda._is_in_bad_fork())  # noqa: SLF001 -- torch has no public name for it


def run_measurement(
    measurement: Measurement,
    context: Context,
    method: Method,
    emit: Callable[[Line], None],
    ends: float,
    factor: float = 1,
) -> None:
    """Run all cases of a measurement and `emit` a line for each, whatever happens.

    A failed case ends its process, because it may leave memory behind; the next cases get a new one. `ends` is the
    moment of `time.monotonic` at which the whole benchmark ends, and `factor` multiplies the measurement's limit.
    """
    begun = time.monotonic()
    pending = list(measurement.cases)
    while pending:
        left = limit(measurement, begun, time.monotonic(), ends, factor)
        if not left:
            for case in pending:
                emit(_line(measurement, case, ("skipped", "no time was left for it", {}, 0.0)))
            return
        done = _run_group(measurement, next_group(pending), context, method, emit, left)
        pending = pending[done:]


def _run_group(
    measurement: Measurement,
    group: tuple[Case, ...],
    context: Context,
    method: Method,
    emit: Callable[[Line], None],
    seconds: float,
) -> int:
    """Run cases in one process for at most `seconds`; return how many got a line, at least one."""
    # multiprocessing names the common parts of its contexts in no type.
    chosen: Any = multiprocessing.get_context(method)
    receiver, sender = chosen.Pipe(duplex=False)
    names = [case.name for case in group]
    process = chosen.Process(target=_child, args=(sender, measurement.name, names, context))
    started = time.monotonic()
    ends = started + seconds
    process.start()
    sender.close()
    try:
        for done, case in enumerate(group):
            begun = time.monotonic()
            try:
                answered = receiver.poll(max(0.0, ends - begun))
                outcome: _Outcome = receiver.recv() if answered else ("timeout", _late(seconds), {}, 0.0)
            except EOFError:
                process.join(_ENDING_SECONDS)
                outcome = ("failed", f"the process ended with exit code {process.exitcode}", {}, 0.0)
            taken = outcome[3] or time.monotonic() - begun
            emit(_line(measurement, case, (*outcome[:3], taken)))
            if outcome[0] not in {"measured", "absent"}:
                return done + 1
        return len(group)
    finally:
        _end(process)


def _late(seconds: float) -> str:
    return f"it must end within the {seconds:.0f} s that were left to the measurement"


def _line(measurement: Measurement, case: Case, outcome: _Outcome) -> Line:
    status, reason, values, seconds = outcome
    missing = missing_values(case, values) if status == "measured" else ()
    if missing:
        status, reason = "failed", f"it must measure {', '.join(case.values)}, found no {', '.join(missing)}"
    return Line(measurement.name, case.name, status, round(seconds, 3), reason, values)


def _child(connection: Connection, name: str, cases: list[str], context: Context) -> None:
    """Run cases and send the outcome of each: in the child process."""
    # What the cases start ends with the child.
    os.setsid()
    _redirect(context)
    for case in cases:
        started = time.monotonic()
        values: dict[str, Any] = {}
        try:
            status, reason = "measured", ""
            values = import_module(f"benchmarks.gpu.measurements.{name}").run(case, context)
        except AbsentError as error:
            status, reason = "absent", str(error)
        except BaseException as error:  # noqa: BLE001 -- the parent gets it as the case's outcome
            status, reason = "failed", shorten(error)
            print(f"--- {name}: {case}", file=sys.stderr)
            traceback.print_exc()
        connection.send((status, reason, values, time.monotonic() - started))
        if status == "failed":
            break
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries take seconds to shut down.
    os._exit(0)


def _redirect(context: Context) -> None:
    """Send what this process prints to the log: standard output has lines only."""
    context.output.mkdir(parents=True, exist_ok=True)
    log = os.open(context.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _end(process: Any) -> None:
    """End a child and what it has started."""
    process.join(0.5)
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join(_ENDING_SECONDS)
