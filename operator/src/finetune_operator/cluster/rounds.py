"""Repeats the reads whose results only explain what happens, such as those of Events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from finetune_operator.cluster.resources import Cluster

_logger = logging.getLogger(__name__)


async def repeat_rounds(
    cluster: Cluster, read_round: Callable[[], Awaitable[None]], seconds: float, what: str
) -> None:
    """Do a round every `seconds` until canceled, and none during an outage of the API server. `what` names it in the log."""
    while True:
        await cluster.await_server()
        try:
            await read_round()
        except Exception:
            # The boundary: its results only explain, so no fault here may end the operator.
            _logger.exception("%s failed", what)
        await asyncio.sleep(seconds)
