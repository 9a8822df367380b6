"""A real operator as a process of this machine, without leader election."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.e2e.control_plane import ControlPlane, free_port, stop

_START_SECONDS = 90.0


@dataclass(frozen=True)
class OperatorRun:
    """The process of an operator and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """Return everything that it has logged."""
        return self.log.read_text(errors="replace")


@contextmanager
def running_operator(plane: ControlPlane, folder: Path) -> Iterator[OperatorRun]:
    """Run an operator that serves all namespaces, with client limits that bound nothing, for a `with` block."""
    settings = folder / "settings.json"
    settings.write_text(
        json.dumps(
            {
                "trainer": {"image": "registry.example/trainer:1", "device": "cpu"},
                "leaderElection": {"enabled": False},
                "client": {"qps": 1000, "burst": 2000},
                "metricsPort": free_port(),
                "healthPort": free_port(),
                "logLevel": "INFO",
            }
        )
    )
    environment = {
        **os.environ,
        "KUBECONFIG": str(plane.operator),
        "FINETUNE_OPERATOR_SETTINGS": str(settings),
    }
    run = OperatorRun(_start(folder, environment), folder / "operator.log")
    try:
        deadline = time.monotonic() + _START_SECONDS
        while "leading;" not in run.text():
            if run.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"the operator must lead within {_START_SECONDS:.0f} s, found {run.text()[-2000:]}"
                )
            time.sleep(0.1)
        yield run
    finally:
        stop(run.process)


def _start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "operator.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_operator"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
