from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import socket
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from aiohttp import web
from finetune_operator.api.stages import Stage
from finetune_operator.cluster import progress_poller
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.poll_schedule import LONGEST_DELAY
from finetune_operator.cluster.progress_poller import (
    POLL_SECONDS,
    Fetch,
    HttpFetcher,
    MuteError,
    ProgressPoller,
)
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import Key
from finetune_operator.observed.pod_address import OperatorPod

from tests.support.operator import make_job, make_node, make_progress
from tests.support.virtual_time import VirtualLoop, run_virtual
from tests.support.world import World

KEY = ("team", "demo")
PERIOD = 5
GOOD = make_progress(Stage.PREPARE).model_dump_json(by_alias=True).encode()
OTHER = make_progress(Stage.PREPARE, uid="another").model_dump_json(by_alias=True).encode()


class Ports:
    """The response of each port, and the ports that were asked. The ports of `hanging` never respond."""

    def __init__(self, answers: dict[int, bytes]) -> None:
        self.answers = answers
        self.hanging: set[int] = set()
        self.asked: list[int] = []

    async def __call__(self, ip: str, port: int) -> bytes | None:
        assert ip == "10.0.0.1"
        self.asked.append(port)
        if port in self.hanging:
            await asyncio.sleep(POLL_SECONDS * 10)
        return self.answers.get(port)


class Fixture:
    """A poller with its store, whose trainers have an address of the only node's pod network."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        gpus = GpuStore((), allow_time_slicing=False)
        gpus.put(make_node("node1", pod_networks=("10.0.0.0/8",)))
        self.store = Store(gpus)
        self.woken: list[Key] = []
        self.outcomes: Counter[str] = Counter()
        world = World()
        world.settle()
        self._child = world.children["demo-prepare-0"]
        self._pod = world.run_pod("demo-prepare-0")
        self.poller = ProgressPoller(
            self.store,
            lambda: gpus.inventory,
            self.woken.append,
            fetch,
            self,
            clock,
            lambda: datetime.fromtimestamp(clock(), UTC),
            lambda: 0.5,
            port=9500,
            period=PERIOD,
            own=OperatorPod(),
        )

    def polled(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def add(self, namespace: str = "team", number: int = 0, ip: str = "10.0.0.1") -> None:
        """Add a FineTuneJob whose PREPARE runs."""
        name = f"{namespace}-{number}"
        job = replace(make_job(), namespace=namespace, name="demo" if number == 0 else f"demo{number}")
        child = replace(self._child, uid=f"child-{name}")
        self.store.put_job(job)
        self.store.put_child(job.key, child)
        self.store.put_pod(
            job.key, replace(self._pod, uid=f"pod-{name}", owner_uid=child.uid, ip=ip, name=name)
        )


def make_poller(ports: Ports) -> tuple[ProgressPoller, Store, list[Key]]:
    fixture = Fixture(ports)
    fixture.add()
    return fixture.poller, fixture.store, fixture.woken


async def test_a_trainers_port_is_found_after_others_and_used_again() -> None:
    ports = Ports({9500: OTHER, 9501: b"not json", 9503: GOOD})
    poller, store, woken = make_poller(ports)
    await poller.poll()
    assert ports.asked == [9500, 9501, 9502, 9503]
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.progress is not None
    assert observation.progress.step == 5
    assert woken == [KEY]
    await poller.poll()
    assert ports.asked[4:] == [9503]
    assert woken == [KEY], "nothing new queues no job"


async def test_a_trainer_that_changed_its_port_is_found_again() -> None:
    ports = Ports({9503: GOOD})
    poller, _, _ = make_poller(ports)
    await poller.poll()
    ports.answers = {9501: GOOD}
    ports.asked.clear()
    await poller.poll()
    assert ports.asked == [9503]
    await poller.poll()
    assert ports.asked == [9503, 9500, 9501]


async def test_a_trainer_that_nobody_can_reach_is_no_failure() -> None:
    ports = Ports({})
    poller, store, woken = make_poller(ports)
    await poller.poll()
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.progress is None
    assert woken == []


async def test_pods_of_an_earlier_job_of_the_same_name_are_not_polled() -> None:
    ports = Ports({9500: GOOD})
    poller, store, _ = make_poller(ports)
    store.put_job(replace(make_job(), uid="new", resource_version="999"))
    await poller.poll()
    assert ports.asked == []


def test_a_port_that_never_responds_hides_no_trainer_behind_it() -> None:
    ports = Ports({9502: GOOD})
    ports.hanging = {9500}

    async def main(loop: VirtualLoop) -> None:
        fixture = Fixture(ports, loop.time)
        fixture.add()
        await fixture.poller.poll()
        assert loop.time() == pytest.approx(POLL_SECONDS, abs=0.1)
        assert ports.asked == [9500]
        await asyncio.sleep(60)
        await fixture.poller.poll()
        assert ports.asked == [9500, 9501, 9502]
        assert fixture.outcomes == {"silent": 1, "answered": 1}

    run_virtual(main)


def test_unreachable_pods_of_one_tenant_delay_no_other_tenant() -> None:
    """Tenant A has 1,000 pods that swallow every packet. Tenant B is polled as if it were alone."""
    asked: list[tuple[float, str]] = []

    async def main(loop: VirtualLoop) -> None:
        async def fetch(ip: str, _port: int) -> bytes | None:
            asked.append((loop.time(), ip))
            await asyncio.sleep(0.01 if ip == "10.0.0.1" else 3600)
            return GOOD

        fixture = Fixture(fetch, loop.time)
        for number in range(1000):
            fixture.add("a", number, f"10.1.{number // 250}.{number % 250 + 1}")
        fixture.add("b")
        running = asyncio.ensure_future(fixture.poller.run())
        await asyncio.sleep(600)
        running.cancel()
        await asyncio.wait({running})

    run_virtual(main)
    times = [when for when, ip in asked if ip == "10.0.0.1"]
    assert times[0] < 0.1
    assert max(later - earlier for earlier, later in pairwise(times)) < PERIOD + 0.5
    per_pod = Counter(ip for _, ip in asked if ip != "10.0.0.1")
    assert len(per_pod) == 1000, "nobody is forgotten"
    assert max(per_pod.values()) <= 6


def test_many_hostile_namespaces_delay_no_trainer_that_answers() -> None:
    """200 namespaces with pods that are replaced all the time, and that never respond."""
    asked: list[float] = []

    async def main(loop: VirtualLoop) -> None:
        async def fetch(ip: str, _port: int) -> bytes | None:
            if ip != "10.0.0.1":
                await asyncio.sleep(3600)
            asked.append(loop.time())
            return GOOD

        fixture = Fixture(fetch, loop.time)
        fixture.add("b")
        running = asyncio.ensure_future(fixture.poller.run())
        for generation in range(20):
            await asyncio.sleep(5)
            for number in range(200):
                fixture.add(f"n{number}", generation, "10.1.0.1")
        running.cancel()
        await asyncio.wait({running})

    run_virtual(main)
    assert max(later - earlier for earlier, later in pairwise(asked)) < PERIOD + 0.5


def test_a_round_ends_in_time_whatever_the_pods_do() -> None:
    async def main(loop: VirtualLoop) -> None:
        async def fetch(_ip: str, _port: int) -> bytes | None:
            await asyncio.sleep(POLL_SECONDS * 0.9)
            return None

        fixture = Fixture(fetch, loop.time)
        for number in range(500):
            fixture.add("a", number)
        for _ in range(10):
            started = loop.time()
            await fixture.poller.poll()
            assert loop.time() - started < PERIOD + 0.1
        await asyncio.sleep(POLL_SECONDS)

    run_virtual(main)


def test_a_trainer_that_was_unreachable_for_long_is_found_again() -> None:
    ports = Ports({9500: GOOD})
    ports.hanging = set(range(9500, 9510))

    async def main(loop: VirtualLoop) -> None:
        fixture = Fixture(ports, loop.time)
        fixture.add()
        running = asyncio.ensure_future(fixture.poller.run())
        await asyncio.sleep(7200)
        assert fixture.outcomes["silent"] < 20
        ports.hanging = set()
        await asyncio.sleep(1.3 * LONGEST_DELAY)
        assert fixture.outcomes["answered"] > 1
        running.cancel()
        await asyncio.wait({running})

    run_virtual(main)


async def test_the_operator_does_not_connect_to_a_forged_address(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    async def fetch(ip: str, _port: int) -> bytes | None:
        asked.append(ip)
        return GOOD

    fixture = Fixture(fetch)
    for number, ip in enumerate(["169.254.169.254", "127.0.0.1", "192.168.7.7", "8.8.8.8", "example.org"]):
        fixture.add("team", number, ip)
    with caplog.at_level(logging.WARNING):
        await fixture.poller.poll()
    assert asked == []
    assert fixture.outcomes == {"refused": 5}
    assert len(caplog.records) == 1, "one line a minute"
    assert "is not polled" in caplog.text


async def test_an_error_of_one_poll_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def fetch(ip: str, _port: int) -> bytes | None:
        if ip == "10.0.0.2":
            raise RuntimeError("odd")
        return GOOD

    fixture = Fixture(fetch)
    fixture.add("team", 0, "10.0.0.2")
    fixture.add("team", 1)
    await fixture.poller.poll()
    assert fixture.woken == [("team", "demo1")]
    assert "odd" in caplog.text


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_pod_is_asked_at_an_address_of_either_family_and_through_no_proxy(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def progress(_: web.Request) -> web.Response:
        return web.Response(body=GOOD)

    application = web.Application()
    application.router.add_get("/progress", progress)
    runner = web.AppRunner(application)
    await runner.setup()
    fetcher = HttpFetcher()
    try:
        try:
            await web.TCPSite(runner, address, 0).start()
        except OSError as error:
            pytest.skip(f"this machine has no loopback address {address}: {error}")
        assert await fetcher(address, runner.addresses[0][1]) == GOOD
    finally:
        await fetcher.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (web.Response(body=GOOD), GOOD),
        (web.Response(status=302, headers={"Location": "/progress?again"}), None),
        (web.Response(body=b" " * 100_000), None),
        (web.Response(status=500, body=GOOD), None),
    ],
    ids=["good", "redirect", "large", "error"],
)
async def test_only_a_plain_and_bounded_response_is_accepted(
    answer: web.Response, body: bytes | None
) -> None:
    asked: list[str] = []

    async def progress(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        return answer

    application = web.Application()
    application.router.add_get("/progress", progress)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fetcher = HttpFetcher()
    try:
        assert await fetcher("127.0.0.1", runner.addresses[0][1]) == body
        assert asked == [""]
        assert await fetcher("127.0.0.1", 1) is None, "no server listens there"
    finally:
        await fetcher.close()
        await runner.cleanup()


BOMB = gzip.compress(b" " * (256 << 20), 1)
"""A quarter of a megabyte, which unpacks to 256 MiB."""


@pytest.mark.parametrize(
    ("attack", "repeated"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1024, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 99, True),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"a" * 65536, True),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Many: a\r\n" * 4096, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n", True),
        (b"\x16\x03\x01" + bytes(range(256)), True),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB, False),
    ],
    ids=[
        "endless body", "endless chunks", "long header", "many headers", "huge length", "negative length", "upgrade",
        "endless continues", "no HTTP", "bomb",
    ],
)  # fmt: skip
async def test_a_hostile_trainer_costs_a_poll_little_time_and_memory(
    attack: bytes, *, repeated: bool
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(attack)
            while repeated and not ended.is_set():
                connection.sendall(attack[attack.find(b"\r\n") + 2 :] or attack)
            ended.wait(POLL_SECONDS)

    thread = threading.Thread(target=serve)
    thread.start()
    fetcher = HttpFetcher()
    tracemalloc.start()
    try:
        started = time.monotonic()
        with contextlib.suppress(MuteError):
            assert await fetcher("127.0.0.1", listener.getsockname()[1]) is None
        assert time.monotonic() - started < 2 * POLL_SECONDS
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
        await fetcher.close()
        ended.set()
        thread.join()
        listener.close()


async def test_a_port_that_accepts_and_says_nothing_is_told_apart_from_a_closed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_poller, "POLL_SECONDS", 0.2)

    connections: list[asyncio.StreamWriter] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    fetcher = HttpFetcher()
    try:
        with pytest.raises(TimeoutError):
            await fetcher("127.0.0.1", server.sockets[0].getsockname()[1])
        assert await fetcher("127.0.0.1", 1) is None
    finally:
        await fetcher.close()
        for writer in connections:
            writer.close()
            await writer.wait_closed()
        server.close()


async def test_an_open_port_that_says_nothing_is_told_from_a_closed_one() -> None:
    """The kernel accepts connections for a process that hangs, so a listening socket is one."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        port = hanging.getsockname()[1]
        fetcher = HttpFetcher()
        try:
            with pytest.raises(MuteError):
                await fetcher("127.0.0.1", port)
            hanging.close()
            assert await fetcher("127.0.0.1", port) is None
        finally:
            await fetcher.close()


def test_a_trainer_that_hangs_stands_still_and_one_that_cannot_be_reached_does_not() -> None:
    class Server(Ports):
        errors: dict[int, Exception]

        async def __call__(self, ip: str, port: int) -> bytes | None:
            if port in self.errors:
                raise self.errors[port]
            return await super().__call__(ip, port)

    async def main(loop: VirtualLoop) -> None:
        server = Server({9502: GOOD})
        server.errors = {}
        fixture = Fixture(server, loop.time)
        fixture.add()
        polling = asyncio.ensure_future(fixture.poller.run())
        await asyncio.sleep(30)
        before = fixture.store.movement(KEY)
        assert before is not None
        assert (before.seen - before.since).total_seconds() >= 25
        server.errors = dict.fromkeys(range(9500, 9510), TimeoutError())
        await asyncio.sleep(300)
        assert fixture.store.movement(KEY) == before, "dropped packets say nothing about the trainer"
        server.answers, server.errors = {}, {9500: MuteError()}
        await asyncio.sleep(1000)
        assert fixture.store.movement(KEY) == before, "nor does another program's port"
        server.errors = {9502: MuteError()}
        await asyncio.sleep(2000)
        after = fixture.store.movement(KEY)
        assert after is not None
        assert after.silent
        assert (after.since, after.step) == (before.since, before.step)
        assert (after.seen - before.seen).total_seconds() > 1000
        polling.cancel()
        await asyncio.wait({polling})

    run_virtual(main)
