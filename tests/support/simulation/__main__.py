"""Lives many seeds, and prints lives a minute, the faults that they had, and every seed that fails.

Control-C ends it early, with the numbers of the lives until then.

python -m tests.support.simulation --seeds 5000
python -m tests.support.simulation --seed 17          # the trace of one life
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import suppress

from tests.support.simulation.faults import FAULTS
from tests.support.simulation.life import live
from tests.support.simulation.many import live_all
from tests.support.simulation.plan import draw_plan


def main(arguments: list[str]) -> int:
    """Run the command; returns 1 if a life has shown a violation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="print the trace of this life")
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--seeds", type=int, default=1000, help="number of lives")
    parser.add_argument(
        "--kind", action="append", choices=sorted(FAULTS), help="a kind of fault; any without it"
    )
    parser.add_argument("--faults", type=int, help="number of faults in each life")
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        outcome = live(draw_plan(options.seed, options.kind, faults=options.faults))
        print(outcome.report(sys.maxsize))
        return int(bool(outcome.violations))
    kinds: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    failed: list[int] = []
    virtual = 0.0
    begin, work = time.perf_counter(), 0.0
    seeds = range(options.first, options.first + options.seeds)
    lives = 0
    with suppress(KeyboardInterrupt):
        for outcome in live_all(seeds, options.kind, options.faults, options.processes):
            lives += 1
            kinds.update(fault.kind for fault in outcome.plan.faults)
            phases.update(outcome.phases)
            hits.update(outcome.hits)
            virtual += outcome.seconds
            work += outcome.work
            if outcome.violations:
                seed = outcome.plan.seed
                failed.append(seed)
                print(f"seed {seed}: {', '.join(fault.kind for fault in outcome.plan.faults)}")
                print("".join(f"    {each[:300]}\n" for each in outcome.violations[:4]), end="", flush=True)
    seconds = time.perf_counter() - begin
    rates = f"{60 * lives / seconds:.0f} a minute, {60 * lives / max(work, 0.001):.0f} a minute of one core"
    print(f"{lives} of {options.seeds} lives in {seconds:.1f} s: {rates}")
    print(f"{virtual / 3600:.1f} hours of virtual time; phases of the jobs: {dict(phases)}")
    print(" faults    hits kind")
    for kind in sorted(FAULTS):
        print(f"{kinds[kind]:7} {hits[kind]:7} {kind}")
    print(f"{len(failed)} lives failed: {failed[:50]}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
