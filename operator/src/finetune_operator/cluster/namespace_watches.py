"""Keeps the watches of single namespaces running, so that none of them stops the others.

A namespace may not exist yet, may be deleted, or may lose the operator's Role. It is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable

from finetune_operator.cluster.informer import Informer
from finetune_operator.errors import ApiError

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0
STOP_SECONDS = 10.0
STEADY_SECONDS = 60.0
"""A watch that has run for so long begins with the first pause again."""

_logger = logging.getLogger(__name__)


def pause_after(failures: int, draw: float) -> float:
    """Seconds after `failures` in a row (at least 1): 5, 10, 20 and so on, at most 300, give or take 20 %.

    `draw` is a random number from 0 to 1.
    """
    return min(FIRST_PAUSE * (1 << min(failures - 1, 10)), LONGEST_PAUSE) * (0.8 + 0.4 * draw)


class NamespaceWatches:
    """One loop for each namespace of the informer: list it, watch it, and try again."""

    def __init__(
        self,
        informer: Informer,
        watch: Callable[[str, Callable[[], None]], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """`watch` feeds the informer from one namespace until it is canceled or fails. `clock` is monotonic, in seconds.

        It calls its second argument if the namespace seems to be refused.
        """
        self._informer = informer
        self._watch = watch
        self._clock = clock
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 -- jitter, not a secret
        self._watching: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watch until canceled."""
        self._informer.on_refusal = self._stop
        async with asyncio.TaskGroup() as group:
            for namespace in self._informer.namespaces:
                group.create_task(self._keep(namespace), name=f"namespace-{namespace}")

    def _stop(self, namespace: str) -> None:
        """End the watch of a namespace that is refused, or seems to be. The next list tells."""
        task = self._watching.get(namespace)
        if task is not None:
            task.cancel()

    async def _keep(self, namespace: str) -> None:
        failures = 1 if namespace in self._informer.refused else 0
        while True:
            if failures:
                await asyncio.sleep(pause_after(failures, self._random.random()))
            began = self._clock()
            try:
                # The first list was the informer's. A later one finds what no watch has reported.
                served = not failures or await self._informer.synchronize_namespace(namespace)
                if served:
                    await self._watch_until_refused(namespace)
            except ApiError as error:
                _logger.warning("namespace %s is listed again later: %s", namespace, error)
            except Exception:
                # The boundary: no fault of one namespace may reach another one.
                _logger.exception("the watch of namespace %s ended, and it is tried again", namespace)
            steady = self._clock() - began > STEADY_SECONDS
            failures = 1 if steady else failures + 1

    async def _watch_until_refused(self, namespace: str) -> None:
        task = self._watching[namespace] = asyncio.ensure_future(
            self._watch(namespace, lambda: self._stop(namespace))
        )
        try:
            await asyncio.wait({task})
        finally:
            # The loop itself may have been canceled.
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_SECONDS)
            del self._watching[namespace]
        if not task.cancelled():
            task.result()
