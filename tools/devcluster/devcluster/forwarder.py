"""TCP forwarder from the machine's loopback to the API server in the cluster's network namespace.

A socket belongs to the network namespace that created it. The owner creates the listening socket before the namespaces
exist. This process inherits it and connects within the new namespace. So no veth pair or firewall rule is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket

from devcluster.layout import API_PORT

_CHUNK = 65536


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _forward(client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
    # A peer that resets its connection ends only this connection; no one else needs to know.
    with contextlib.suppress(OSError):
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", API_PORT)
            try:
                await asyncio.gather(_copy(client_reader, server_writer), _copy(server_reader, client_writer))
            finally:
                server_writer.close()
        finally:
            client_writer.close()


async def serve(listener: socket.socket) -> None:
    """Forward every connection that `listener` accepts, until canceled."""
    server = await asyncio.start_server(_forward, sock=listener, backlog=128)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve on the inherited listening socket whose file descriptor is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the listening socket")
    asyncio.run(serve(socket.socket(fileno=parser.parse_args().fd)))


if __name__ == "__main__":
    main()
