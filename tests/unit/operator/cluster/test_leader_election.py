from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

import pytest
from finetune_operator.cluster.fence import IN_FLIGHT_SECONDS, Fence
from finetune_operator.cluster.leader_election import Elector, Timing
from finetune_operator.errors import ApiError, LeaseLostError

from tests.support.clock import Clock
from tests.support.virtual_time import VirtualLoop, run_virtual


class LeaseServer:
    """The API server's handling of one Lease: versions, conflicts and, on demand, faults."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.fault: Exception | None = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        limited: bool = True,
    ) -> dict[str, Any]:
        assert not limited, "the Lease must not wait for other calls"
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/system/leases")
        if self.fault is not None:
            raise self.fault
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "no lease")
            return copy.deepcopy(self.lease)
        assert body is not None
        if method == "POST":
            if self.lease is not None:
                raise ApiError(409, "AlreadyExists", "exists")
        elif self.lease is None or body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "Conflict", "changed")
        self.version += 1
        self.lease = copy.deepcopy(dict(body))
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)


FAST = Timing(duration=15, renew_deadline=0.05, retry_period=0.01)


def make_elector(server: LeaseServer, clock: Clock, identity: str, timing: Timing | None = None) -> Elector:
    api: Any = server
    return Elector(api, "system", "operator", identity, clock, Fence(clock), timing or Timing())


async def test_the_first_replica_creates_the_lease_and_the_second_waits() -> None:
    server, clock = LeaseServer(), Clock(0.0)
    first, second = make_elector(server, clock, "a"), make_elector(server, clock, "b")
    assert await first._try()
    assert not await second._try()
    assert server.lease is not None
    assert server.lease["spec"]["holderIdentity"] == "a"


async def test_a_lease_is_taken_over_only_if_it_is_unchanged_for_its_duration() -> None:
    server, clock = LeaseServer(), Clock(0.0)
    first, second = make_elector(server, clock, "a"), make_elector(server, clock, "b")
    await first._try()
    assert not await second._try()
    clock.now = 14
    assert await first._try()
    clock.now = 20
    assert not await second._try(), "it was renewed at 14, which the other replica saw at 20"
    clock.now = 34.9
    assert not await second._try()
    clock.now = 35
    assert await second._try()
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1
    assert not await first._try(), "the former leader must notice"


async def test_a_released_lease_is_taken_at_once() -> None:
    server, clock = LeaseServer(), Clock(0.0)
    first, second = make_elector(server, clock, "a"), make_elector(server, clock, "b")
    await first._try()
    await first.release()
    assert await second._try()
    await first.release()
    assert server.lease is not None
    assert server.lease["spec"]["holderIdentity"] == "b", "only the holder releases"


async def test_one_of_two_replicas_that_try_together_gets_a_conflict() -> None:
    server, clock = LeaseServer(), Clock(0.0)
    first, second = make_elector(server, clock, "a"), make_elector(server, clock, "b")
    await first._try()
    await first.release()
    read = await second._read()
    assert read is not None
    assert await first._try()
    with pytest.raises(ApiError, match="Conflict"):
        await server.call("PUT", second._path, body=read, limited=False)


@pytest.mark.parametrize("fault", [ApiError(0, "Unreachable", "down"), OSError("down"), ValueError("odd")])
async def test_a_leader_that_cannot_renew_gives_up_after_any_error(fault: Exception) -> None:
    server = LeaseServer()
    clock = Clock(0.0)
    elector = make_elector(server, clock, "a", FAST)
    await elector.acquire()
    server.fault = fault
    original = elector._try

    async def attempt() -> bool:
        clock.now += 0.02
        return await original()

    elector._try = attempt  # type: ignore[method-assign]  # moves the clock as a slow API server would
    with pytest.raises(LeaseLostError, match="must be renewed"):
        await elector.hold()


class HangingServer(LeaseServer):
    """Does not answer every fifth request."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    async def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        self.requests += 1
        if self.requests % 5 == 0:
            await asyncio.Event().wait()
        return await super().call(method, path, **options)


def test_requests_that_hang_now_and_then_do_not_end_a_leader() -> None:
    server = HangingServer()

    async def main(loop: VirtualLoop) -> None:
        api: Any = server
        elector = Elector(api, "system", "operator", "a", loop.time, Fence(loop.time))
        await elector.acquire()
        holding = asyncio.ensure_future(elector.hold())
        await asyncio.sleep(600)
        assert not holding.done()
        holding.cancel()
        await asyncio.wait({holding})

    run_virtual(main)
    assert server.requests > 100


def test_a_request_that_hangs_delays_no_standby_for_long() -> None:
    server = HangingServer()
    server.requests = 4

    async def main(loop: VirtualLoop) -> None:
        api: Any = server
        elector = Elector(api, "system", "operator", "a", loop.time, Fence(loop.time))
        await asyncio.wait_for(elector.acquire(), 8.0)

    run_virtual(main)


def test_a_release_that_nobody_answers_is_an_error_of_the_api_server() -> None:
    server = HangingServer()

    async def main(loop: VirtualLoop) -> None:
        api: Any = server
        elector = Elector(api, "system", "operator", "a", loop.time, Fence(loop.time))
        await elector.acquire()
        server.requests = 4
        with pytest.raises(ApiError, match="no answer"):
            await elector.release()

    run_virtual(main)


async def test_a_leader_that_was_replaced_gives_up() -> None:
    server, clock = LeaseServer(), Clock(0.0)
    elector = make_elector(server, clock, "a", FAST)
    await elector.acquire()
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "b"
    original = elector._try

    async def attempt() -> bool:
        clock.now += 0.02
        return await original()

    elector._try = attempt  # type: ignore[method-assign]  # moves the clock as a slow API server would
    with pytest.raises(LeaseLostError):
        await elector.hold()


def may_write(elector: Elector) -> bool:
    return not elector.fence.closed


async def test_writes_pass_until_shortly_before_another_replica_may_lead() -> None:
    server, clock = LeaseServer(), Clock(100.0)
    elector = make_elector(server, clock, "a")
    elector.fence.close()
    original = server.call

    async def slow(*arguments: Any, **options: Any) -> dict[str, Any]:
        clock.now += 1
        return await original(*arguments, **options)

    server.call = slow  # type: ignore[method-assign]  # moves the clock as a slow API server would
    await elector.acquire()
    assert elector.renewed == 100, "the start of the requests counts, not their end"
    clock.now = 100 + 15 - IN_FLIGHT_SECONDS - 0.1
    assert may_write(elector)
    clock.now += 0.1
    assert not may_write(elector)


async def test_a_leader_ends_before_its_fence_closes_and_the_fence_before_the_lease() -> None:
    timing = Timing()
    assert timing.renew_deadline < timing.duration - timing.in_flight < timing.duration


async def test_each_renewal_moves_the_deadline_of_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    server, clock = LeaseServer(), Clock(0.0)
    elector = make_elector(server, clock, "a")
    await elector.acquire()
    rounds = 0

    async def sleep(seconds: float) -> None:
        nonlocal rounds
        clock.now += seconds
        rounds += 1
        if rounds > 10:
            server.fault = ApiError(0, "Unreachable", "down")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(LeaseLostError):
        await elector.hold()
    assert elector.renewed == 20, "ten renewals, each after two seconds"
    assert clock.now == 30
    assert may_write(elector)
    clock.now = 20 + 15 - IN_FLIGHT_SECONDS
    assert not may_write(elector)


async def test_a_lease_that_took_too_long_to_get_is_not_held_yet() -> None:
    server, clock = LeaseServer(), Clock(0.0)
    elector = make_elector(server, clock, "a", Timing(retry_period=0.01))
    durations = [11.0, 1.0]
    original = elector._try

    async def attempt() -> bool:
        clock.now += durations.pop(0)
        return await original()

    elector._try = attempt  # type: ignore[method-assign]  # moves the clock as a slow API server would
    await elector.acquire()
    assert durations == []
    assert elector.renewed == 11


async def test_nothing_is_written_before_the_lease_is_held_and_after_it_is_released() -> None:
    server, clock = LeaseServer(), Clock(0.0)
    first, second = make_elector(server, clock, "a"), make_elector(server, clock, "b", FAST)
    await first.acquire()
    assert may_write(first)
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(0.03)
    assert not may_write(second)
    await first.release()
    assert not may_write(first)
    await asyncio.wait_for(waiting, 5)
    assert may_write(second)
