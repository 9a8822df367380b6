"""Runs the command line as a user of a namespace would."""

from __future__ import annotations

import os
import subprocess
import sys

from devcluster.kubectl import Kubectl
from devcluster.layout import BIN


def finetune(kubectl: Kubectl, *arguments: str) -> str:
    """Run `finetune` with these arguments in kubectl's namespace; returns what it prints."""
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubectl.kubeconfig),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "finetune_cli", *arguments, "--namespace", str(kubectl.namespace)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, f"{arguments[0]} ended with {done.returncode}: {done.stderr}"
    return done.stdout
