"""The operator with thousands of FineTuneJobs on a real API server: `make benchmark-scale`.

Prints a line of JSON for each measurement, followed by a table. Each one has a control plane of its own, in a folder
that is removed at its end. Figures of a busy machine are of no use but as ratios of one run: `--against` measures
another version of the operator in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scale.burst import burst
from benchmarks.scale.lives import lives
from benchmarks.scale.operator_process import LIMITS, Limits
from benchmarks.scale.peer import PEER_LIMITS, peer_burst
from benchmarks.scale.restart import restart
from benchmarks.scale.scrape import scrape
from benchmarks.scale.soak import soak

MEASUREMENTS = ("burst", "lives", "restart", "scrape", "soak")
Measure = Callable[[Path], Coroutine[Any, Any, dict[str, Any]]]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and return the lines."""
    options = _parser().parse_args(arguments)
    lines = []
    for name in options.only or MEASUREMENTS:
        for version, measure in _turns(name, options):
            folder = Path(tempfile.mkdtemp(prefix="scale-", dir=options.folder))
            try:
                line = {"operator": version, **asyncio.run(measure(folder / "plane"))}
            finally:
                if not options.keep:
                    shutil.rmtree(folder)
            print(json.dumps(line), flush=True)
            lines.append(line)
    print("\n".join(_table(lines)))
    return lines


def _turns(name: str, options: argparse.Namespace) -> Iterator[tuple[str, Measure]]:
    """The runs of one measurement. All contenders take turns, and each begins as often as the others."""
    for turn in range(options.rounds):
        yield from list(_contenders(name, options))[:: -1 if turn % 2 else 1]


def _contenders(name: str, options: argparse.Namespace) -> Iterator[tuple[str, Measure]]:
    """This version of the operator, another one and the peer, each with the limits that are measured."""
    versions: list[tuple[str, Path | None]] = [("this", None)]
    if options.against is not None:
        versions.append(("other", options.against))
    for version, sources in versions:
        for limits in LIMITS if name == "burst" else LIMITS[1:]:
            for measure in _measures(name, options, replace(limits, sources=sources)):
                yield version, measure
    if name == "burst" and options.peer:
        for peer_limits in PEER_LIMITS:
            yield (
                "peer",
                partial(peer_burst, jobs=options.burst, namespaces=options.namespaces, limits=peer_limits),
            )


def _measures(name: str, options: argparse.Namespace, limits: Limits) -> Iterator[Measure]:
    spaces = options.namespaces
    match name:
        case "burst":
            yield lambda folder: burst(folder, options.burst, spaces, limits)
        case "lives":
            yield lambda folder: lives(
                folder,
                options.lives,
                spaces,
                limits,
                gpus=options.gpus,
                train_seconds=options.train_seconds,
                seconds=options.timeout,
                ended=options.before,
            )
        case "restart":
            for jobs in options.ended:
                yield lambda folder, jobs=jobs: restart(  # type: ignore[misc]
                    folder, jobs, spaces, limits, single=options.one_by_one
                )
        case "scrape":
            yield lambda folder: scrape(folder, options.active, spaces, limits, options.scrapes)
        case "soak" if options.soak:
            yield lambda folder: soak(folder, options.soak, options.rate, spaces, limits, gpus=options.gpus)


def _table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield ""
    yield "| measurement | operator | figure | value |"
    yield "|---|---|---|---|"
    for line in lines:
        name = " ".join(str(line[key]) for key in ("measurement", "limits", "jobs") if key in line)
        for figure, value in line.items():
            if figure not in {"measurement", "operator", "limits", "jobs"}:
                yield f"| {name} | {line['operator']} | {figure} | {value} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--only", action="append", choices=MEASUREMENTS, help="one measurement; may be repeated; default: all"
    )
    add("--burst", type=int, default=1000, help="jobs of the burst; default %(default)s")
    add("--lives", type=int, default=10_000, help="whole jobs; default %(default)s")
    add("--gpus", type=int, default=500, help="GPUs, so also jobs in TRAIN at once; default %(default)s")
    add("--train-seconds", type=float, default=20.0, help="duration of TRAIN; default %(default)s")
    add("--timeout", type=float, default=3600.0, help="most seconds for all whole jobs; default %(default)s")
    add(
        "--ended", type=int, nargs="+", default=[10_000, 50_000], help="jobs that have ended before a restart"
    )
    add("--before", type=int, default=0, help="jobs that have ended before whole lives; default: none")
    add("--one-by-one", action="store_true", help="let a restart serve the namespaces one by one")
    add("--active", type=int, default=10_000, help="active jobs of a scrape; default %(default)s")
    add("--scrapes", type=int, default=10, help="scrapes; default %(default)s")
    add("--soak", type=float, default=0.0, help="minutes of churn; default: none")
    add("--rate", type=float, default=2.0, help="new jobs a second in the soak; default %(default)s")
    add("--namespaces", type=int, default=10, help="namespaces of the jobs; default %(default)s")
    add("--rounds", type=int, default=1, help="runs of each measurement; default %(default)s")
    add(
        "--against",
        type=Path,
        help="folder with the package of another version (operator/src), measured in turns",
    )
    add("--peer", action="store_true", help="measure the burst of Kubeflow Trainer in turns, too")
    add("--folder", type=Path, help="folder for the data; default: that of the system")
    add("--keep", action="store_true", help="keep the data and the logs")
    return parser


if __name__ == "__main__":
    main()
