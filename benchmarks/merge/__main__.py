"""Compare MERGE with a copy and with peft, and rounding rules with each other: `make benchmark-merge`.

Prints a line of JSON per measurement and two tables at the end. The routes run in turns on one disk, each in a process of its
own. `--write` puts the figures into benchmarks/merge/results.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from finetune_trainer.cpu import available_cpus

from benchmarks.merge import survival
from benchmarks.merge.routes import ROUTES
from benchmarks.merge.synthetic import layers_for, parameters_of, write_synthetic
from tests.support.kernels import share_kernels

_ROOT = Path(__file__).parents[2]
_RESULTS = Path(__file__).with_name("results.json")
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
_DISK_SHARE = 6
"""Bytes on disk at once, as a multiple of the model's 16-bit size: base, 4-bit checkpoint, and the outputs of the routes."""


def measure_routes(folder: Path, parameters: float, rounds: int) -> dict[str, Any]:
    """Run every route `rounds` times; return the medians, and the ratios to the copy of the same round."""
    layers = layers_for(parameters)
    share_kernels(os.environ)
    needed = 2 * _DISK_SHARE * parameters_of(layers)
    free = shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(
            f"{folder} must have {needed / 1e9:.0f} GB free, found {free / 1e9:.0f} GB; use --folder or --parameters"
        )
    root = folder / "model"
    write_synthetic(root, layers)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ROUTES}
    for _ in range(rounds):
        for name in ("merge", "copy", "peft"):
            found[name].append(_run(name, root))
            print(json.dumps({"route": name, **found[name][-1]}), flush=True)
        for name in (*ROUTES, "journals"):
            shutil.rmtree(root / name)
    routes = {
        name: {key: median(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()
    }
    ratios = {
        f"{name} / copy": [
            one["megabytesPerSecond"] / other["megabytesPerSecond"]
            for one, other in zip(found[name], found["copy"], strict=True)
        ]
        for name in ("merge", "peft")
    }
    return {"parameters": parameters_of(layers), "rounds": rounds, "routes": routes, "ratios": ratios}


def _run(route: str, root: Path) -> dict[str, float]:
    paths = os.pathsep.join(str(_ROOT / part) for part in ("trainer_image/src", "."))
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.merge.routes", route, str(root)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": paths},
    )
    found: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return found


def measure_survival(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Measure all rules at all learning rates."""
    found = []
    for line in survival.measure(folder, rows):
        print(json.dumps(line), flush=True)
        found.append(line)
    return found


def machine() -> dict[str, Any]:
    """Describe the machine in general words."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpus": available_cpus(),
        "architecture": platform.machine(),
        "memoryGiB": round(memory / 2**30),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def show_routes(speed: dict[str, Any]) -> None:
    """Print the routes as a table."""
    print(f"\n{'route':<8}{'s':>8}{'MB/s':>8}{'of copy':>9}{'peak MB':>9}{'read MB':>9}")
    for name, route in speed["routes"].items():
        share = median(speed["ratios"].get(f"{name} / copy", [1.0]))
        print(
            f"{name:<8}{route['seconds']:>8.1f}{route['megabytesPerSecond']:>8.0f}{share:>9.2f}"
            f"{route['peakBytes'] / 1e6:>9.0f}{route['bytesRead'] / 1e6:>9.0f}"
        )


def show_survival(lines: list[dict[str, Any]]) -> None:
    """Print the rules as a table."""
    print(
        f"\n{'rate':<8}{'onto':<17}{'rule':<38}{'survives':>9}{'KL':>10}{'effect':>10}{'trained':>9}{'merged':>9}"
    )
    for line in lines:
        print(
            f"{line['learningRate']:<8g}{line['onto']:<17}{line['rule']:<38}{line['projection']:>9.3f}"
            f"{line['divergence']:>10.2e}{line['effect']:>10.2e}{line['trainedLoss']:>9.4f}{line['mergedLoss']:>9.4f}"
        )


def main() -> None:
    """Measure both parts, or the selected part."""
    parser = argparse.ArgumentParser(prog="benchmark-merge", description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9, help="parameters of the synthetic model")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each route")
    parser.add_argument("--rows", type=int, default=16, help="held-out rows for the rules")
    parser.add_argument("--folder", type=Path, help="where to write, on the disk to measure")
    parser.add_argument("--only", choices=("speed", "survival"), help="one part alone")
    parser.add_argument("--write", action="store_true", help="also write results.json")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(_RESULTS.read_text("utf-8")) if _RESULTS.is_file() else {}
    results["machine"] = machine()
    with tempfile.TemporaryDirectory(prefix="benchmark-merge-", dir=options.folder) as name:
        if options.only in {None, "speed"}:
            results["speed"] = measure_routes(Path(name), options.parameters, options.rounds)
        if options.only in {None, "survival"}:
            results["survival"] = measure_survival(Path(name), options.rows)
    if options.write:
        _RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.only in {None, "speed"}:
        show_routes(results["speed"])
    if options.only in {None, "survival"}:
        show_survival(results["survival"])


if __name__ == "__main__":
    main()
