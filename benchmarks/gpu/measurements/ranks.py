"""Measurement 8: tokens per second of one process, and of two with a GPU each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from finetune_trainer.contract.rank_layout import RankLayout
from finetune_trainer.contract.run_spec import RunSpec

from benchmarks.gpu.context import AbsentError, Context
from benchmarks.gpu.marked_trainer import read_marks
from benchmarks.gpu.plan import DRY_FACTOR
from benchmarks.gpu.shapes import Rows
from benchmarks.gpu.weights import quantized_weights
from benchmarks.gpu.workspaces import make_run, make_workspace

CASES = {
    "one process": (1, "DataParallel"),
    "two replicas": (2, "DataParallel"),
    "two with shared weights": (2, "FullyShard"),
}
"""Processes, and how they share the model."""
_ROWS = 16
_WARM_STEPS = 3
_SECONDS = 100.0
"""For one case. A dry run may take longer, as in `plan.DRY_FACTOR`."""


def run(case: str, context: Context) -> dict[str, Any]:
    """Run TRAIN with the processes of a case. All have the same rows in each step, and so the same losses."""
    processes, parallelism = CASES[case]
    found = torch.cuda.device_count()
    if not context.dry and found < 2:
        raise AbsentError(f"two GPUs must be there, found {found}")
    name, length = context.size.running, context.size.running_length
    steps = _WARM_STEPS + context.size.rank_steps
    weights = quantized_weights(name, context.size.configs[name], context.scratch, context.device)
    layout = make_workspace(context.scratch / "ranks", weights, [length] * _ROWS)
    spec = make_run(layout, context.device, Rows(length, _ROWS, 4), steps, parallelism=parallelism)
    if processes > 1:
        spec = spec.model_copy(update={"ranks": RankLayout(nodes=1, per_node=processes)})
    times = _step_times(spec, layout.root, _SECONDS * (DRY_FACTOR if context.dry else 1))
    seconds = times[steps] - times[_WARM_STEPS]
    rate = _ROWS * length * (steps - _WARM_STEPS) / seconds
    return {
        "model": name,
        "processes": processes,
        "parallelism": parallelism,
        "steps": steps - _WARM_STEPS,
        "seconds": seconds,
        "tokensPerSecond": rate,
        "tokensPerSecondPerGpu": rate / processes,
        "ofOneShare": rate / processes / _rate_of_one(context.scratch / "ranks.json", rate, processes),
    }


def _step_times(spec: RunSpec, folder: Path, timeout_seconds: float) -> dict[int, float]:
    """Return the time at which each step was first reported."""
    path, marks = folder / "run.json", folder / "marks.jsonl"
    path.write_text(spec.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu.marked_trainer", str(marks)),
            *("train", "--run", str(path), "--termination-message", str(folder / "result.json")),
        ],
        env=os.environ.copy(),
        timeout=timeout_seconds,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"the trainer must end with exit code 0, found {ended.returncode}; see the log")
    times: dict[int, float] = {}
    for at, activity, step in read_marks(marks):
        if activity == "Training":
            times.setdefault(step, at)
    return times


def _rate_of_one(path: Path, rate: float, processes: int) -> float:
    """Return the rate of one process, which the first case leaves for the others."""
    if processes == 1:
        path.write_text(json.dumps(rate), encoding="utf-8")
    return float(json.loads(path.read_text(encoding="utf-8")))
