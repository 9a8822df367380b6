"""A program `kubectl` for tests of commands: it keeps FineTuneJobs in a folder and fails as a test says.

Tests with a real API server are in tests/e2e/test_cli_jobs.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python} -S
import json, pathlib, sys
home = pathlib.Path({home!r})
words = [word for word in sys.argv[1:] if not word.startswith("--") and not word.startswith("-n")]
stdin = sys.stdin.read() if "--filename=-" in sys.argv else ""
with (home / "log").open("a") as log:
    log.write(json.dumps({{"arguments": sys.argv[1:], "stdin": stdin}}) + "\\n")
failures = sorted(home.glob("failure-*"))
if failures:
    message = failures[0].read_text()
    failures[0].unlink()
    sys.exit(message)
jobs = home / "jobs"
match words:
    case ["get", _, name]:
        states = sorted(jobs.glob(name + ".*.json"))
        if not states:
            sys.exit('Error from server (NotFound): finetunejobs.finetune.dev "' + name + '" not found')
        print(states[0].read_text())
        if len(states) > 1:
            states[0].unlink()
    case ["get", _]:
        found = [path.read_text() for path in sorted(jobs.glob("*.json"))]
        if "--output=name" in sys.argv:
            print("\\n".join("finetunejob.finetune.dev/" + json.loads(text)["metadata"]["name"] for text in found))
        else:
            print('{{"items": [' + ",".join(found) + "]}}")
    case ["create"]:
        print(stdin)
    case ["patch", _, name]:
        path = sorted(jobs.glob(name + ".*.json"))[0]
        job = json.loads(path.read_text())
        patch = next(word for word in sys.argv if word.startswith("--patch="))
        job["spec"].update(json.loads(patch.removeprefix("--patch="))["spec"])
        path.write_text(json.dumps(job))
        print(json.dumps(job))
"""


class KubectlProgram:
    """The program's folder. A job with several states changes to the next one with each look at it."""

    def __init__(self, folder: Path) -> None:
        self._home = folder
        (folder / "jobs").mkdir(parents=True)
        self.path = folder / "bin"
        self.path.mkdir()
        program = self.path / "kubectl"
        program.write_text(_PROGRAM.format(python=sys.executable, home=str(folder)), "utf-8")
        program.chmod(0o755)

    def put(self, *states: dict[str, Any]) -> None:
        """Store the states of one job, the first one first."""
        for number, state in enumerate(states):
            name = state["metadata"]["name"]
            metadata = {"uid": f"uid-{name}", "resourceVersion": str(number), **state["metadata"]}
            (self._home / "jobs" / f"{name}.{number:02d}.json").write_text(
                json.dumps({**state, "metadata": metadata}), "utf-8"
            )

    def fail(self, *messages: str) -> None:
        """Let the next calls fail, each with one of kubectl's messages."""
        for number, message in enumerate(messages):
            (self._home / f"failure-{number:02d}").write_text(message, "utf-8")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls so far, each with `arguments` and `stdin`."""
        log = self._home / "log"
        return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
