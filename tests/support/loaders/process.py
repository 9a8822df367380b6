"""Starts loaders: processes of `serve_models`, each with the libraries of one environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.support.repository import ROOT

LOADERS = ROOT / ".cache" / "loaders"
TRANSFORMERS_4 = LOADERS / "transformers-4"
_SCRIPT = Path(__file__).with_name("serve_models.py")


class Loader:
    """A running loader. Its libraries come from `packages`, and all others from the environment of the tests."""

    def __init__(self, *packages: Path) -> None:
        """Start the process. Raises FileNotFoundError if an environment is not installed."""
        for folder in packages:
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{folder} must hold the loader's packages, found none; run `make loaders`"
                )
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, packages)),
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()

    def ask(self, action: str, **request: Any) -> dict[str, Any]:
        """Let the loader do one thing; return its answer, which may be `{"error": ...}`.

        Raises RuntimeError if the process has ended.
        """
        self.send(action, **request)
        return self.receive()

    def send(self, action: str, **request: Any) -> None:
        """Send a request without waiting, so that several loaders can work at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, **request}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to the oldest request that has none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loader must answer, but it ended with code {self._process.wait()}")
        return dict(json.loads(line))
