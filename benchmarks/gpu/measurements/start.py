"""Measurement 7: the time from the start of the trainer's process to the end of its first step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from finetune_trainer.stages.train.compile_cache import VARIABLE

from benchmarks.gpu.context import Context
from benchmarks.gpu.marked_trainer import read_marks
from benchmarks.gpu.shapes import Rows
from benchmarks.gpu.weights import quantized_weights
from benchmarks.gpu.workspaces import make_run, make_workspace

_SECONDS = 120.0


def run(case: str, context: Context) -> dict[str, Any]:
    """Run TRAIN for one step in a process that starts from nothing."""
    name = context.size.running
    length = context.size.running_length
    weights = quantized_weights(name, context.size.configs[name], context.scratch, context.device)
    layout = make_workspace(context.scratch / f"start-{case}", weights, [length] * 16)
    spec = make_run(layout, context.device, Rows(length, 8, 4), 1)
    path = layout.root / "run.json"
    path.write_text(spec.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    marks = layout.root / "marks.jsonl"
    # The second start finds what the first one has compiled, as a second job with the same model cache does.
    compiled = context.scratch / "compiled"
    found_bytes = sum(path.stat().st_size for path in compiled.glob("*.kernels"))
    started = time.time()
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.gpu.marked_trainer",
            str(marks),
            "train",
            "--run",
            str(path),
            "--termination-message",
            str(layout.root / "result.json"),
        ],
        env={**os.environ, VARIABLE: str(compiled)},
        timeout=_SECONDS,
        check=False,
    )
    found = read_marks(marks)
    if ended.returncode:
        raise RuntimeError(f"the trainer must end with exit code 0, found {ended.returncode}; see the log")
    first_step = next(at for at, activity, step in found if activity == "Training" and step >= 1)
    activities: dict[str, float] = {}
    for at, activity, _ in found:
        activities.setdefault(activity, at - started)
    return {
        "model": name,
        "activities": activities,
        "firstStepSeconds": first_step - started,
        "compiledBytes": found_bytes,
        "exitCode": ended.returncode,
    }
