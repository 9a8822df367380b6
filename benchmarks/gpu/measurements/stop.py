"""Measurement 6: the time from SIGTERM to a verified checkpoint and the end of the process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from finetune_trainer.stages.train.checkpoints import newest_checkpoint

from benchmarks.gpu.context import Context
from benchmarks.gpu.marked_trainer import read_marks, run_and_exit
from benchmarks.gpu.shapes import Rows
from benchmarks.gpu.workspaces import make_run, make_workspace

_WANTED_STEP = 2
_STEPS = 100_000
_SECONDS = 120.0
_PAUSE = 0.005


def run(case: str, context: Context) -> dict[str, Any]:
    """Train in a process, send SIGTERM in its third step, and verify what it leaves."""
    assert case == "stop"
    name = context.size.running
    length = context.size.running_length
    # Measurement 5 has made the weights; this process must not touch the GPU before its copy uses it.
    from benchmarks.gpu.weights import quantized_weights  # noqa: PLC0415 -- see above

    weights = quantized_weights(name, context.size.configs[name], context.scratch, context.device)
    rows = Rows(length, 8, 4)
    layout = make_workspace(context.scratch / "stop", weights, [length] * 64)
    spec = make_run(layout, context.device, rows, _STEPS, checkpoint={"intervalSteps": _STEPS})
    path = layout.root / "run.json"
    path.write_text(spec.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    marks = layout.root / "marks.jsonl"
    command = ["train", "--run", str(path), "--termination-message", str(layout.root / "result.json")]
    # multiprocessing names the common parts of its contexts in no type.
    chosen: Any = multiprocessing.get_context(_method(context))
    process = chosen.Process(target=run_and_exit, args=(marks, command))
    process.start()
    assert process.pid is not None
    step = _wait_for_step(marks, process)
    sent = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(_SECONDS)
    ended = time.monotonic()
    newest = newest_checkpoint(layout.checkpoints)
    verified = time.monotonic()
    assert newest is not None, "a checkpoint must be whole after SIGTERM, found none"
    return {
        "model": name,
        "exitCode": process.exitcode,
        "stepAtSignal": step,
        "checkpointStep": newest[0],
        "checkpointBytes": sum(path.stat().st_size for path in newest[1].iterdir()),
        "exitSeconds": ended - sent,
        "verifySeconds": verified - ended,
    }


def _method(context: Context) -> str:
    """Return how the trainer's process starts: a GPU needs a process that has not touched it."""
    return "fork" if context.dry else "spawn"


def _wait_for_step(marks: Path, process: Any) -> int:
    """Wait until the training has done two steps, and return the last one that it reported."""
    ends = time.monotonic() + _SECONDS
    while time.monotonic() < ends:
        steps = [step for _, activity, step in read_marks(marks) if activity == "Training"]
        if steps and steps[-1] >= _WANTED_STEP:
            return steps[-1]
        if process.exitcode is not None:
            raise RuntimeError(
                f"the trainer must train until it is stopped, found exit code {process.exitcode}"
            )
        time.sleep(_PAUSE)
    raise RuntimeError(f"the trainer must do {_WANTED_STEP} steps in {_SECONDS:.0f} s, found fewer")
