"""Keeps a former leader from writing: no byte of a write leaves this process after its Lease may have expired.

Another replica may lead as soon as the Lease has been unchanged for its duration. A process that was stopped or blocked
meanwhile does not know that, and it wakes with writes that are ready to go: in a queue, in the wait for a connection, or
half sent. So the clock is compared with the deadline as late as possible, in the call that hands bytes to the kernel.
ADR 0041 says what remains.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from finetune_operator.errors import FencedError

IN_FLIGHT_SECONDS = 3.0
"""Time in which bytes that were handed to the kernel must arrive. After that, the kernel drops the connection."""

AddressInfo = tuple[int, int, int, str, Any]
"""Family, type, protocol, canonical name and address, as `socket.getaddrinfo` returns them."""


def elapsed_time() -> float:
    """Seconds of a monotonic clock that runs on while the process is stopped and while the machine is suspended."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class Fence:
    """The time until which this process may write: for ever at first, and without leader election."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is that of the deadlines, in seconds. It must run on while the process is stopped."""
        self._clock = clock
        self._deadline = float("inf")

    def close(self) -> None:
        """Let nothing pass until the next call of `extend`."""
        self._deadline = float("-inf")

    def extend(self, deadline: float) -> None:
        """Let writes pass until `deadline`."""
        self._deadline = deadline

    @property
    def closed(self) -> bool:
        """True if nothing may be written now."""
        return self._clock() >= self._deadline

    def check(self) -> None:
        """Raises FencedError if nothing may be written now."""
        if self.closed:
            raise FencedError

    def open_socket(self, info: AddressInfo) -> FencedSocket:
        """A socket for a connection that carries writes only."""
        opened = FencedSocket(self, *info[:3])
        # Bytes that do not arrive are given up in time. Without this, the kernel would repeat them for minutes, even
        # after the process has ended.
        limit = getattr(socket, "TCP_USER_TIMEOUT", None)
        if limit is not None and info[0] in {socket.AF_INET, socket.AF_INET6}:
            opened.setsockopt(socket.IPPROTO_TCP, limit, int(IN_FLIGHT_SECONDS * 1000))
        return opened


class FencedSocket(socket.socket):
    """A TCP socket that sends nothing while its fence is closed.

    asyncio's own event loop calls `send` or `sendmsg` for every byte, also for those that waited in its buffer and for those
    of TLS. It closes the connection if they fail, so that the rest of a request never follows.
    """

    def __init__(self, fence: Fence, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self._fence = fence

    def send(self, *arguments: Any) -> int:
        """Send as any socket does. Raises ConnectionAbortedError while the fence is closed."""
        self._check()
        return super().send(*arguments)

    def sendmsg(self, *arguments: Any) -> int:
        """Send as any socket does. Raises ConnectionAbortedError while the fence is closed."""
        self._check()
        return super().sendmsg(*arguments)

    def _check(self) -> None:
        if self._fence.closed:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the Lease may have expired, so nothing is sent")
