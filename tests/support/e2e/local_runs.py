"""Runs `finetune run` as a process, and reads its results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_locally(job: Path, runs: Path, volume: str, *, seconds: float) -> None:
    """Run a job's file on the CPU; `volume` is NAME=FOLDER of its claim. Raises CalledProcessError if it fails."""
    command = [
        sys.executable, "-m", "finetune_cli", "run", str(job),
        "--volume", volume, "--runs", str(runs), "--device", "cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=seconds)


def stage_results(output: Path) -> dict[str, Any]:
    """Return the results of the stages, from the manifest in the output folder."""
    results: dict[str, Any] = json.loads((output / "manifest.json").read_text("utf-8"))["results"]
    return results
