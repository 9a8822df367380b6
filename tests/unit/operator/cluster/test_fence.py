"""Writes of a former leader: in the rate limiter, between two tries, in the wait for a connection, and half sent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from finetune_operator.cluster import client
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.fence import IN_FLIGHT_SECONDS, Fence, elapsed_time
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.errors import ApiError, FencedError
from kubernetes.aio.client import Configuration

from tests.support.api_server import ObjectServer
from tests.support.clock import Clock
from tests.support.virtual_time import VirtualApi, VirtualLoop, run_virtual

JOBS = "/apis/batch/v1/namespaces/team/jobs"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/system/leases"


def named(name: str) -> dict[str, object]:
    return {"metadata": {"name": name}}


def test_a_fence_is_open_until_leader_election_closes_it() -> None:
    clock = Clock(100.0)
    fence = Fence(clock)
    fence.check()
    fence.close()
    assert fence.closed
    fence.extend(112.0)
    fence.check()
    clock.now = 111.9
    fence.check()
    clock.now = 112.0
    with pytest.raises(FencedError, match="may have expired"):
        fence.check()
    fence.extend(130.0)
    fence.check()


def test_the_clock_of_the_deadline_is_monotonic_and_counts_a_suspension() -> None:
    before = elapsed_time()
    assert elapsed_time() >= before
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(elapsed_time() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


def test_writes_that_wait_for_the_rate_limit_are_not_sent_after_the_deadline() -> None:
    async def main(loop: VirtualLoop) -> None:
        server = ObjectServer()
        api = VirtualApi(server, loop, qps=1, burst=2)
        api.fence.extend(5.5)
        names = [f"job{number}" for number in range(20)]
        results = await asyncio.gather(
            *(api.call("POST", JOBS, body=named(name)) for name in names), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, FencedError)]
        assert len(server.requests) == 7, "two at once, and one in each of five seconds"
        assert len(refused) == 13
        assert loop.time() > 15, "the others had their turn later"

    run_virtual(main)


def test_a_retry_is_not_sent_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_DELAY", 10.0)

    async def main(loop: VirtualLoop) -> None:
        server = ObjectServer()
        server.failures["POST", JOBS] = 503
        api = VirtualApi(server, loop)
        api.fence.extend(4.0)
        with pytest.raises(FencedError):
            await api.call("POST", JOBS, body=named("a"))
        assert server.requests == [("POST", JOBS)]

    run_virtual(main)


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_every_kind_of_write_but_those_of_the_lease_is_held_back(method: str, *, aside: bool) -> None:
    async def main(loop: VirtualLoop) -> None:
        server = ObjectServer()
        server.put(JOBS, named("a"))
        api = VirtualApi(server, loop)
        api.fence.close()
        with pytest.raises(FencedError):
            await api.call(method, f"{JOBS}/a", body=named("a"), aside=aside)
        assert server.requests == []
        await api.call("GET", f"{JOBS}/a")
        await api.call("POST", LEASES, body=named("lease"), limited=False)
        assert server.requests == [("GET", f"{JOBS}/a"), ("POST", LEASES)]

    run_virtual(main)


# -- real connections -------------------------------------------------------------------------------------------


@asynccontextmanager
async def client_of(
    host: str, clock: Callable[[], float], *, connections: int = 64, ca: Path | None = None
) -> AsyncIterator[ApiClient]:
    configuration = Configuration()
    configuration.host = host
    configuration.retries = None
    configuration.connection_pool_maxsize = connections
    configuration.ssl_ca_cert = None if ca is None else str(ca)
    api = ApiClient(
        configuration, TokenBucket(1000, 1000, time.monotonic), lambda _method, _code: None, clock
    )
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def server_of(
    handler: Callable[[web.Request], object], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]  # a coroutine function
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_a_write_that_waits_for_a_connection_is_not_sent_after_the_deadline() -> None:
    clock = Clock(0.0)
    arrived: list[str] = []
    first, release = asyncio.Event(), asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        arrived.append(f"{request.method} {request.path}")
        if request.method == "POST":
            first.set()
            await release.wait()
        return web.json_response({})

    async with (
        server_of(handle) as port,
        client_of(f"http://127.0.0.1:{port}", clock, connections=1) as api,
    ):
        api.fence.extend(10.0)
        sent = asyncio.create_task(api.call("POST", JOBS, body=named("a")))
        await asyncio.wait_for(first.wait(), 30)
        waiting = [asyncio.create_task(api.call("POST", JOBS, body=named(f"b{n}"))) for n in range(5)]
        for _ in range(20):
            await asyncio.sleep(0.01)
        clock.now = 10.0
        release.set()
        assert await sent == {}, "its answer still counts"
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [FencedError] * 5
        assert arrived == [f"POST {JOBS}"]
        await api.call("GET", "/version")
        clock.now = 0.0
        await api.call("POST", JOBS, body=named("c"))
        assert arrived[1:] == ["GET /version", f"POST {JOBS}"]


@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_the_rest_of_a_write_that_is_half_sent_never_follows() -> None:
    """The server stops to read, so most of the request waits in buffers when the deadline passes."""
    clock = Clock(0.0)
    received = bytearray()
    started, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(1000))
        started.set()
        await go_on.wait()
        with suppress(ConnectionError):
            while data := await reader.read(2**20):
                received.extend(data)
        ended.set()
        writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    server = await asyncio.start_server(serve, sock=listening, limit=2**16)
    body = {"metadata": {"name": "a"}, "data": "x" * 2**25}
    async with client_of(f"http://127.0.0.1:{listening.getsockname()[1]}", clock) as api:
        api.fence.extend(10.0)
        writing = asyncio.create_task(api.call("POST", JOBS, body=body))
        await asyncio.wait_for(started.wait(), 30)
        clock.now = 10.0
        go_on.set()
        with pytest.raises(FencedError):
            await writing
        await asyncio.wait_for(ended.wait(), 30)
    server.close()
    assert received.startswith(b"POST ")
    assert len(received) < 2**25


async def test_writes_over_tls_pass_and_end_with_the_deadline(tmp_path: Path) -> None:
    clock = Clock(0.0)
    arrived: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        arrived.append(request.method)
        return web.json_response({})

    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        server_of(handle, context) as port,
        client_of(f"https://127.0.0.1:{port}", clock, ca=tmp_path / "ca.pem") as api,
    ):
        api.fence.extend(10.0)
        await api.call("PATCH", f"{JOBS}/a", body=named("a"))
        clock.now = 10.0
        with pytest.raises(ApiError):
            await api._send("PATCH", f"{JOBS}/a", None, named("a"), client.MERGE)
        await api.call("GET", f"{JOBS}/a")
    assert arrived == ["PATCH", "GET"]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux gives bytes up in time")
def test_the_kernel_gives_up_bytes_that_do_not_arrive_in_time() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 1))
    with Fence(Clock()).open_socket(info) as opened:
        limit = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit == IN_FLIGHT_SECONDS * 1000


WRITER = """
import asyncio, os, signal, sys
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.fence import elapsed_time
from finetune_operator.cluster.rate_limiter import TokenBucket
from kubernetes.aio.client import Configuration

async def write(api, number):
    while True:
        try:
            await api.call("POST", f"/writer/{number}", body={"data": "x" * 1000})
        except Exception:
            await asyncio.sleep(0)

async def main():
    configuration = Configuration()
    configuration.host = sys.argv[1]
    configuration.retries = None
    api = ApiClient(configuration, TokenBucket(100000, 100000, elapsed_time), lambda method, code: None)
    woken = []
    # Python runs this before anything else after the stop.
    signal.signal(signal.SIGCONT, lambda number, frame: woken.append(elapsed_time()))
    for number in range(20):
        asyncio.ensure_future(write(api, number))
    while True:
        now = elapsed_time()
        if not woken:
            api.fence.extend(now + 1.0)
        elif now - woken[0] > 2:
            # Long enough for every write that is ready to go.
            os._exit(7)
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


async def test_a_process_that_was_stopped_beyond_its_deadline_begins_no_write() -> None:
    arrived = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal arrived
        await request.read()
        arrived += 1
        return web.json_response({})

    async with server_of(handle) as port:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, f"http://127.0.0.1:{port}"
        )
        try:
            for _ in range(600):
                if arrived > 200:
                    break
                await asyncio.sleep(0.05)
            assert arrived > 200
            os.kill(process.pid, signal.SIGSTOP)
            before = -1
            while arrived != before:
                # What the kernel has already does arrive.
                before = arrived
                await asyncio.sleep(1.5)
            os.kill(process.pid, signal.SIGCONT)
            assert await asyncio.wait_for(process.wait(), 60) == 7
            # ADR 0041: its thread may have stopped between the comparison and the system call. The other 19 writers wait.
            assert arrived <= before + 1
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
