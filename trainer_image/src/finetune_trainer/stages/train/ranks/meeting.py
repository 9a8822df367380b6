"""Waits until the pods of all nodes have started, and tells them where torchrun's static rendezvous is.

Pods start in any order, and one may wait long for its node. torch's own rendezvous waits in native code, where a signal to
stop would be heard too late. So the pods wait here, in a loop. The first one opens a store on a free port, and writes its
address into the workspace, which all share. That needs no Service, no DNS and no further permission.
"""

from __future__ import annotations

import json
import logging
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # torch imports it from its C++ part

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

MEETING_SECONDS = 3600.0
"""Time in which all pods must have started. The operator takes their GPUs back much earlier."""
_LOOK_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_STARTED = "started"


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of all nodes meet. `store` keeps the place open for as long as it lives."""

    address: str
    port: int
    token: str
    """Names this launch among those that used the same address."""
    store: TCPStore


def meet(
    workspace: WorkspaceLayout,
    *,
    attempt: int,
    index: int,
    nodes: int,
    address: str,
    seconds: float = MEETING_SECONDS,
) -> Meeting:
    """Return the meeting of the `nodes` pods of this attempt, once all of them have come.

    `index` is the number of this pod, and `address` its IP address. Raises StageError(Interrupted) after `seconds`.
    """
    path = workspace.meeting(attempt)
    deadline = time.monotonic() + seconds
    if index == 0:
        return _host(path, nodes, address, deadline)
    while True:
        found = _join(path, index, deadline)
        if found is not None:
            return found
        _require_time(deadline, f"node 0 of {nodes}")
        time.sleep(_LOOK_SECONDS)


def _host(path: Path, nodes: int, address: str, deadline: float) -> Meeting:
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    found = Meeting(address, store.port, uuid.uuid4().hex, store)
    write_json_atomically(path, {"address": address, "port": found.port, "token": found.token})
    awaited = list(range(1, nodes))
    while awaited:
        awaited = [index for index in awaited if not store.check([_arrival(found.token, index)])]
        if awaited:
            _require_time(deadline, f"nodes {', '.join(map(str, awaited))} of {nodes}")
            time.sleep(_LOOK_SECONDS)
    store.set(f"{found.token}/{_STARTED}", "1")
    _log.info("the pods of all %s nodes have started", nodes)
    return found


def _join(path: Path, index: int, deadline: float) -> Meeting | None:
    """Join the meeting that the file names; None if it is not open, or if its host is lost."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        address, port, token = str(document["address"]), int(document["port"]), str(document["token"])
        # A store waits in native code for a host that does not answer.
        socket.create_connection((address, port), timeout=_CONNECT_SECONDS).close()
        store = TCPStore(
            address,
            port,
            wait_for_workers=False,
            timeout=timedelta(seconds=_CONNECT_SECONDS),
            multi_tenant=True,
        )
        store.set(_arrival(token, index), "1")
        while not store.check([f"{token}/{_STARTED}"]):
            _require_time(deadline, "the other nodes")
            time.sleep(_LOOK_SECONDS)
    except (OSError, ValueError, KeyError, TypeError, DistError) as error:
        # The file may be of a pod that another one has replaced.
        _log.debug("the meeting is not open: %s", error)
        return None
    return Meeting(address, port, token, store)


def _arrival(token: str, index: int) -> str:
    return f"{token}/{index}"


def _require_time(deadline: float, awaited: str) -> None:
    if time.monotonic() > deadline:
        raise StageError(
            Reason.INTERRUPTED,
            f"the pods of all nodes must start together, but {awaited} did not come in time; run it again to continue",
        )
