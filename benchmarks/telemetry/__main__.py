"""Step times of a run with and without an attack on its telemetry port: `make benchmark-telemetry`.

One process trains a small model in turns. In a turn, a hundred scrapers and hostile clients attack its port, or the port of
another process, or nothing. The second kind shows what the clients take from the machine. The clients are a process of
their own, on another core if there is one. Prints a line of JSON with the lower quartiles of the steps, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from statistics import median, quantiles
from typing import Any

import torch
from finetune_trainer.contract.identity import Identity
from finetune_trainer.telemetry.reporter import Reporter

_WARM_UP = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--turns", type=int, default=20, help="rounds of one turn of each kind; default %(default)s"
    )
    parser.add_argument("--steps", type=int, default=30, help="steps of a turn; default %(default)s")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    torch.set_num_threads(1)
    print(json.dumps(_measure(options.turns, options.steps, set(cores[1:2] or cores))))


def _measure(turns: int, steps: int, cores: set[int]) -> dict[str, Any]:
    reporter = Reporter(Identity("uid", "Train", 0), port=19500)
    if reporter.port is None:
        sys.exit("a port from 19500 to 19509 must be free, found none; end the programs that use them")
    step = _steps(reporter)
    for _ in range(_WARM_UP):
        step()
    clients = _Clients(reporter.port, cores)
    times: dict[str, list[float]] = {"run": [], "decoy": [], "nothing": []}
    for _ in range(turns):
        # Each round has its own order, so that a trend of the machine cancels.
        for kind in random.sample(sorted(times), len(times)):
            clients.tell(kind)
            times[kind].append(quantiles(step() for _ in range(steps))[0])
    clients.end()
    reporter.close()
    found: dict[str, Any] = {f"{kind}Milliseconds": round(1000 * median(times[kind]), 3) for kind in times}
    for other in ("decoy", "nothing"):
        ratios = [one / base for one, base in zip(times["run"], times[other], strict=True)]
        found[f"run / {other}"] = round(median(ratios), 4)
    ratios = [one / base for one, base in zip(times["decoy"], times["nothing"], strict=True)]
    found["decoy / nothing"] = round(median(ratios), 4)
    return found


def _steps(reporter: Reporter) -> Any:
    """Return a function that does one training step, reports it, and returns its seconds."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(20)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = torch.randn(64, 256)
    done = 0

    def step() -> float:
        nonlocal done
        began = time.perf_counter()
        loss = model(rows).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        reporter.update(
            "Training", done, None, loss=float(loss.detach()), learning_rate=1e-4, tokens_per_second=1.0
        )
        return time.perf_counter() - began

    return step


class _Clients:
    """The process of the clients, on cores of its own. They work only when they are told to."""

    def __init__(self, port: int, cores: set[int]) -> None:
        command = [sys.executable, "-m", "benchmarks.telemetry.clients", str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self._process.pid, cores)

    def tell(self, line: str) -> None:
        """Let the clients attack `run`, `decoy` or `nothing`, and wait until they do."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


if __name__ == "__main__":
    main()
