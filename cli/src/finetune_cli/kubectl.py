"""Reading from a cluster through kubectl, which knows the user's kubeconfig, contexts and logins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from finetune_cli.errors import UsageError


def kubectl_get(arguments: Sequence[str], context: str | None, remedy: str) -> Any:
    """The JSON that `kubectl get ARGUMENTS` prints.

    Raises UsageError with kubectl's own words and `remedy` where there is no kubectl, no cluster or no permission.
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
        raise UsageError(f"kubectl must be on PATH to ask the cluster: {error.strerror}; {remedy}") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{' '.join(command)} must answer within 60 s, found no answer; {remedy}") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise UsageError(f"{' '.join(command)} failed: {said[-1] if said else 'it said nothing'}; {remedy}")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise UsageError(f"{' '.join(command)} must print JSON: {error}; {remedy}") from error
