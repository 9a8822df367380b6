"""The real kubectl as a callable, for tests and the demo."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.layout import tool

_SECONDS = 180


class KubectlError(Exception):
    """kubectl ended with an error; the message contains the command and its stderr."""


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl on the cluster of `kubeconfig`; with `namespace`, every command runs in that namespace."""

    kubeconfig: Path
    namespace: str | None = None

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return its exit status, stdout and stderr, even if it fails."""
        scope = [] if self.namespace is None else ["--namespace", self.namespace]
        command = [str(tool("kubectl")), *scope, *arguments]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=_SECONDS,
        )

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its stdout; raises KubectlError if it fails."""
        answer = self.run(*arguments, stdin=stdin)
        if answer.returncode != 0:
            raise KubectlError(
                f"kubectl {' '.join(arguments)}: exit {answer.returncode}: {answer.stderr.strip()}"
            )
        return answer.stdout

    def json(self, *arguments: str) -> Any:
        """Run kubectl with `--output=json` and return the parsed output."""
        return json.loads(self(*arguments, "--output=json"))

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply objects given as Python data."""
        self("apply", "--filename=-", stdin="\n---\n".join(json.dumps(document) for document in documents))

    def within(self, namespace: str) -> Kubectl:
        """Return the same kubectl, bound to `namespace`."""
        return Kubectl(self.kubeconfig, namespace)
