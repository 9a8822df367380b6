"""Which pod of TRAIN this process is in, as Kubernetes tells it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec

INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
ADDRESS_VARIABLE = "FINETUNE_POD_ADDRESS"


def node_index(run: RunSpec, environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this pod among those that train together, 0 for the only one.

    Raises StageError(InvalidRunSpec) if the run spec has several and the environment names none of them.
    """
    nodes = 1 if run.ranks is None else run.ranks.nodes
    if nodes == 1:
        return 0
    text = environment.get(INDEX_VARIABLE, "")
    if not text.isascii() or not text.isdigit() or int(text) >= nodes:
        raise StageError(
            Reason.INVALID_RUN_SPEC,
            f"{INDEX_VARIABLE} must be a number from 0 to {nodes - 1}, as in a pod of an indexed Job, found {text!r}",
        )
    return int(text)


def is_first_node(run: RunSpec, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this pod keeps the records of all. One that does not know its number keeps none."""
    try:
        return node_index(run, environment) == 0
    except StageError:
        return False


def pod_address(environment: Mapping[str, str] = os.environ) -> str:
    """Return the IP address of this pod. Raises StageError(InvalidRunSpec) if it is not known."""
    address = environment.get(ADDRESS_VARIABLE, "")
    if not address:
        raise StageError(
            Reason.INVALID_RUN_SPEC,
            f"{ADDRESS_VARIABLE} must be the pod's IP address if `ranks` has several nodes",
        )
    return address
