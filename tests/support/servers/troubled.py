"""A relay in front of a real server that answers in its place while there is trouble."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
    b"<Message>The provided token has expired.</Message></Error>"
)


def response(status: str, body: bytes = b"") -> bytes:
    """Return a whole response after which the connection ends."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@dataclass
class Trouble:
    """`answer` decides from the bytes that clients have sent so far; None lets the server answer."""

    answer: Callable[[int], bytes | None]
    received: int = 0
    answered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, count: int) -> bytes | None:
        """Count received bytes, and return the answer in place of the server's."""
        with self.lock:
            self.received += count
            found = self.answer(self.received)
            self.answered += found is not None
            return found


@contextmanager
def troubled(endpoint: str, answer: Callable[[int], bytes | None]) -> Iterator[tuple[str, Trouble]]:
    """Relay connections to `endpoint`; yields the relay's endpoint and its trouble."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    trouble = Trouble(answer)
    listener = socket.create_server(("127.0.0.1", 0))

    def back(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port))) as server, contextlib.suppress(OSError):
            threading.Thread(target=back, args=(server, client), daemon=True).start()
            while data := client.recv(1 << 16):
                instead = trouble.take(len(data))
                if instead is not None:
                    client.sendall(instead)
                    client.shutdown(socket.SHUT_WR)
                    # The client must be able to read the answer before the connection is reset.
                    while client.recv(1 << 16):
                        pass
                    return
                server.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=relay, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", trouble
    finally:
        listener.close()
