"""The pool of connections to the API server, of which only as many stay open as are needed at one time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
from kubernetes.aio.client.rest import RESTClientObject

if TYPE_CHECKING:
    from kubernetes.aio import client as kubernetes_client

    from finetune_operator.cluster.fence import Fence


class RecentConnector(aiohttp.TCPConnector):
    """Uses the connection again that was used last, so that the others become idle and are closed.

    aiohttp takes the one that has waited longest, which keeps all of them open. A single moment with many requests would cost
    256 KiB for each connection from then on, the buffer of asyncio's TLS.
    """

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        waiting = self._conns.get(key)
        if waiting and waiting[-1][0] is protocol:
            waiting.rotate(1)


class PooledTransport(RESTClientObject):
    """The library's transport with such a pool. With a `fence`, its sockets send nothing while that is closed."""

    def __init__(self, configuration: kubernetes_client.Configuration, fence: Fence | None = None) -> None:
        super().__init__(configuration)
        self._fence = fence

    def _create_connector(self) -> aiohttp.TCPConnector:
        return RecentConnector(
            limit=self.maxsize,
            ssl=self.ssl_context,
            socket_factory=None if self._fence is None else self._fence.open_socket,
        )
