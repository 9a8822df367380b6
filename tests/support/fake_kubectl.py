"""A kubectl on PATH that answers from a folder, and records what it is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python}
import json, sys
from pathlib import Path
folder = Path({folder!r})
arguments = sys.argv[1:]
with (folder / "calls").open("a") as file:
    file.write(json.dumps([arguments, sys.stdin.read() if "--filename=-" in arguments else ""]) + "\\n")
text = " ".join(arguments)
rules = json.loads((folder / "rules.json").read_text())
for rule in rules:
    if rule["times"] != 0 and all(word in arguments for word in rule["words"]):
        rule["times"] -= 1
        (folder / "rules.json").write_text(json.dumps(rules))
        sys.stdout.buffer.write(b"" if rule["error"] else bytes.fromhex(rule["output"]))
        sys.stdout.flush()
        sys.stderr.write(rule["error"])
        sys.exit(1 if rule["error"] else 0)
sys.exit(f"no rule for {{text}}")
"""


class FakeKubectl:
    """Rules for kubectl: the first whose words are all among the arguments, and that is not used up, answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rules: list[dict[str, Any]] = []
        program = folder / "kubectl"
        program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)

    def answer(self, *words: str, output: Any = "", error: str = "", times: int = -1) -> None:
        """Answer calls with these words, at most `times` ones if that is not negative: with bytes, or with JSON."""
        content = output if isinstance(output, bytes) else json.dumps(output).encode()
        self._rules.append({"words": words, "output": content.hex(), "error": error, "times": times})
        (self._folder / "rules.json").write_text(json.dumps(self._rules))

    def calls(self) -> list[list[str]]:
        """The arguments of all calls so far."""
        return [call[0] for call in self._calls()]

    def given(self) -> list[Any]:
        """What the calls got on standard input, as JSON."""
        return [json.loads(call[1]) for call in self._calls() if call[1]]

    def _calls(self) -> list[list[Any]]:
        path = self._folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
