"""Measure the trainer on one GPU in at most nine minutes: `python -m benchmarks.gpu`. docs/gpu-benchmark.md explains it.

With --dry-run, tiny shapes on a CPU go through the same code, and the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.carried import unpack
from benchmarks.gpu.children import run_measurement, start_method
from benchmarks.gpu.context import Context
from benchmarks.gpu.lines import Line, LineFile
from benchmarks.gpu.plan import DRY_FACTOR, SECONDS, measurements
from benchmarks.gpu.versions import below_minimum, installed_versions, minimum_versions

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("operator/src", "trainer_image/src", "cli/src", "")


def main() -> int:
    """Write a line for each case, and the calibration. Return 1 if a case was not measured and no part was absent."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument(
        "--output", type=Path, default=ROOT / ".cache/benchmark-gpu", help="folder of the results"
    )
    parser.add_argument("--carried", type=Path, help="folder that `python -m benchmarks.gpu.carried` made")
    parser.add_argument(
        "--scratch", type=Path, help="folder for 20 GiB of weights (default: temporary files)"
    )
    parser.add_argument("--only", action="append", help="name of a measurement; may be repeated")
    options = parser.parse_args()
    begun = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="benchmark-gpu-", dir=options.scratch) as scratch:
        _set_environment(options.carried, Path(scratch), dry=options.dry_run)
        context = Context(Path(scratch), options.output, options.dry_run)
        context.log.write_text("", encoding="utf-8")
        method = start_method(context)
        below = below_minimum(minimum_versions(ROOT / "pyproject.toml"), installed_versions())
        file = LineFile(options.output / "lines.jsonl")
        lines: list[Line] = []

        def emit(line: Line) -> None:
            lines.append(replace(line, dry=context.dry, below=below))
            file.write(lines[-1])

        factor = DRY_FACTOR if context.dry else 1.0
        for measurement in measurements(context.size):
            if options.only and measurement.name not in options.only:
                continue
            run_measurement(measurement, context, method, emit, begun + SECONDS * factor, factor)
            if measurement.name == "environment":
                rates = [line.values["matrixFlops"] for line in lines if "matrixFlops" in line.values]
                context = replace(context, matrix_flops=next(iter(rates), None))
        # It needs packages that may be among the carried ones.
        calibration = importlib.import_module("benchmarks.gpu.calibration")
        calibration.write_calibration(lines, options.output / "calibration.json")
        failures = sum(line.status not in {"measured", "absent"} for line in lines)
    print(
        f"{len(lines)} lines in {options.output}, {failures} of them failed; it took {time.monotonic() - begun:.0f} s. "
        f"Tables: python -m benchmarks.gpu.report {options.output / 'lines.jsonl'}",
        file=sys.stderr,
    )
    return 1 if failures else 0


def _set_environment(carried: Path | None, scratch: Path, *, dry: bool) -> None:
    """Let this process and all children find the carried packages first, and the sources of this repository."""
    paths = [str(ROOT / source) for source in _SOURCES]
    if carried is not None:
        paths.insert(0, str(unpack(carried, scratch / "packages")))
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.chdir(ROOT)
    # Names of models are never looked up.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Children end at once, without the locks that libraries make and do not use.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    if dry:
        # Children are copies of a process that has imported torch, whose threads a copy does not have.
        os.environ["OMP_NUM_THREADS"] = "1"
    # As in the trainer's pods.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


if __name__ == "__main__":
    sys.exit(main())
