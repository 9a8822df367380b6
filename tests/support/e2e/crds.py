"""Waiting until the API server serves the CRD."""

from __future__ import annotations

from devcluster.kubectl import Kubectl

from tests.support.e2e.leases import until

NAME = "finetunejobs.finetune.dev"


def await_established(kubectl: Kubectl) -> None:
    """Wait until the applied CRD is established. `kubectl wait` fails at once while its conditions are null."""

    def established() -> bool:
        status = kubectl.json("get", "crd", NAME).get("status") or {}
        found = {each["type"]: each["status"] for each in status.get("conditions") or ()}
        return found.get("Established") == "True"

    until("the CRD established", established, seconds=60)
