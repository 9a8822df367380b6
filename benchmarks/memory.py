"""Compare the memory estimate of finetune_operator.sizing with a run of the trainer's step on fake tensors.

Run `python -m benchmarks.memory` from the repository's root; `--only TEXT` selects the cases whose name contains it,
`--json` prints one JSON object per line. The exit status is 1 if an estimate is more than 3 % high or 2 % low.
Both sides leave out terms that a run on fake tensors cannot show (`Term.visible` is false).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from typing import Any

from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK

from tests.support.memory_oracle.cases import CASES, Case
from tests.support.memory_oracle.fake_run import PHASES, extrapolate, run_fake

_GIB = 1 << 30
_HIGH, _LOW = 3.0, -2.0


def compare(case: Case) -> dict[str, Any]:
    """Return the peaks of one case in bytes, estimated and measured, by phase and overall, with errors in percent."""
    estimated = estimate(model_shape(case.config), case.plan, DEFAULT_STACK)
    visible = dict.fromkeys(PHASES, 0)
    for term in estimated.terms:
        if term.visible and term.phase in visible:
            visible[term.phase] += term.bytes
    found = (run_fake if case.full else extrapolate)(case.config, case.plan)
    pairs = {phase: (visible[phase], found.phases[phase]) for phase in PHASES}
    pairs["Peak"] = (estimated.visible_peak_bytes, found.peak_bytes)
    return {
        "case": case.name,
        "phases": {
            name: {"estimated": guess, "found": peak, "percent": 100 * (guess - peak) / peak}
            for name, (guess, peak) in pairs.items()
        },
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="select the cases whose name contains this")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    # transformers and bitsandbytes warn about matters that do not affect a run on fake tensors.
    warnings.simplefilter("ignore")
    rows = []
    columns = ("Peak", *PHASES)
    if not options.json:
        print(f"{'case':<62} {'GiB':>7}" + "".join(f" {name + ' %':>13}" for name in columns))
    for case in CASES:
        if options.only in case.name:
            row = compare(case)
            rows.append(row)
            phases = row["phases"]
            print(
                json.dumps(row)
                if options.json
                else f"{case.name:<62} {phases['Peak']['found'] / _GIB:>7.2f}"
                + "".join(f" {phases[name]['percent']:>+13.2f}" for name in columns),
                flush=True,
            )
    errors = [row["phases"]["Peak"]["percent"] for row in rows]
    if not errors:
        print(f"--only must be part of a case's name, but no name contains {options.only!r}", file=sys.stderr)
        return 2
    if not options.json:
        print(
            f"{len(errors)} cases, error of the peak: median {statistics.median(map(abs, errors)):.2f} %, "
            f"lowest {min(errors):+.2f} %, highest {max(errors):+.2f} %"
        )
    return 0 if min(errors) >= _LOW and max(errors) <= _HIGH else 1


if __name__ == "__main__":
    sys.exit(main())
