"""Read from a cluster with kubectl, which handles the user's kubeconfig, contexts and logins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from finetune_cli.errors import UsageError


def kubectl_get(arguments: Sequence[str], context: str | None, remedy: str) -> Any:
    """The JSON that `kubectl get ARGUMENTS` prints.

    Raises UsageError with kubectl's message and `remedy` if there is no kubectl, no cluster or no permission.
    """
    command = [
        "kubectl",
        *([] if context is None else ["--context", context]),
        "get",
        *arguments,
        "-o",
        "json",
    ]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except OSError as error:
        raise UsageError(
            f"kubectl must be on PATH to read from the cluster: {error.strerror}; {remedy}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{' '.join(command)} must respond within 60 s, but did not; {remedy}") from error
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise UsageError(
            f"{' '.join(command)} failed: {lines[-1] if lines else 'it printed no error'}; {remedy}"
        )
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise UsageError(f"{' '.join(command)} must print JSON: {error}; {remedy}") from error
