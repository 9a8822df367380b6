"""Serve a second port, and attack it or the port of a run: `python -m benchmarks.telemetry.clients PORT`.

Each line of the input says what to attack until the next line: `run`, `decoy` or `nothing`. The line `done` confirms it.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from finetune_trainer.contract.identity import Identity
from finetune_trainer.telemetry.reporter import Reporter

from tests.support.hostile_scrapers import attack

_BEGINNING_SECONDS = 0.5


def main() -> None:
    """Attack what the input says until it ends."""
    decoy = Reporter(Identity("uid", "Train", 0), port=19600)
    ports = {"run": int(sys.argv[1]), "decoy": decoy.port}
    with ExitStack() as going:
        for line in sys.stdin:
            going.close()
            port = ports.get(line.strip())
            if port is not None:
                going.enter_context(attack(port))
                time.sleep(_BEGINNING_SECONDS)
            print("done", flush=True)
    decoy.close()


if __name__ == "__main__":
    main()
