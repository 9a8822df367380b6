"""The real trainer process without a port and under attack on its port: it ends well, with the same adapter."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.telemetry.connections import LARGEST_NUMBER
from finetune_trainer.telemetry.server import PORTS_TRIED

from tests.support import workspaces
from tests.support.hostile_scrapers import attack

pytestmark = pytest.mark.slow

STEPS = 30


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("attacked")
    workspaces.write_base(root / "base", "llama")
    workspaces.prepare(root / "workspace", root / "base")
    return root


def free_ports() -> int:
    """Return the first of ten ports that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 60000)


class Run:
    """A TRAIN process, and its port."""

    def __init__(self, prepared: Path, root: Path, port: int) -> None:
        self.port = port
        self.workspace = root / "workspace"
        root.mkdir()
        shutil.copytree(prepared / "workspace", self.workspace)
        run = workspaces.run_spec(self.workspace, root / "output", maximumSteps=STEPS)
        document = json.loads(run.model_dump_json(by_alias=True, exclude_unset=True))
        document["telemetry"] = {"port": port, "host": "127.0.0.1"}
        (root / "run.json").write_text(json.dumps(document))
        self._result = root / "result.json"
        command = [sys.executable, "-m", "finetune_trainer", "train", "--run", str(root / "run.json")]
        self.process = subprocess.Popen(
            [*command, "--termination-message", str(self._result)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def progress(self) -> dict[str, Any] | None:
        """Return the served progress document; None while nobody serves it."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/progress", timeout=20) as response:
                return dict(json.loads(response.read(), parse_constant=pytest.fail))
        except OSError:
            return None

    def count(self, kind: str) -> int:
        """Return the number of threads (`task`) or descriptors (`fd`) of the process; 0 when it has ended."""
        try:
            return len(list(Path(f"/proc/{self.process.pid}/{kind}").iterdir()))
        except OSError:
            return 0

    def wait_for_port(self) -> None:
        """Wait until the progress is served."""
        end = time.monotonic() + 60
        while self.progress() is None:
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)

    def finish(self) -> tuple[dict[str, Any], str]:
        """Wait for the end; return the result and the log."""
        _, log = self.process.communicate(timeout=300)
        return json.loads(self._result.read_text()), log


def test_a_run_without_a_free_port_ends_well_and_so_does_one_under_attack(
    prepared: Path, tmp_path: Path
) -> None:
    """The attack: a hundred scrapers at once, hung ones, slow ones, garbage and idle connections."""
    first = free_ports()
    with ExitStack() as taken:
        for port in range(first, first + PORTS_TRIED):
            taken.enter_context(busy(port))
        unserved, log = Run(prepared, tmp_path / "unserved", first).finish()
    assert unserved["outcome"] == "Succeeded", log
    assert log.count("cannot be used") == PORTS_TRIED
    assert log.count("the run continues without telemetry") == 1

    run = Run(prepared, tmp_path / "attacked", first)
    run.wait_for_port()
    threads, files, served = 0, 0, 0
    before = run.count("fd")
    with attack(run.port):
        while run.process.poll() is None:
            threads, files = max(threads, run.count("task")), max(files, run.count("fd"))
            served += run.progress() is not None
            time.sleep(0.1)
    attacked, log = run.finish()
    assert attacked["outcome"] == "Succeeded", log
    assert attacked["train"]["adapterDigest"] == unserved["train"]["adapterDigest"]
    assert served > 0
    # Libraries start threads of their own, but there is none for each client.
    assert threads < 40
    assert files < before + LARGEST_NUMBER + 40
    assert log.count("WARNING finetune_trainer.telemetry") == 0


def busy(port: int) -> ExitStack:
    """Take a port, unless somebody has it already."""
    stack = ExitStack()
    with ExitStack() as trial:
        try:
            trial.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            return stack
        return trial.pop_all()
