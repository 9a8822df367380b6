"""Faults of requests, watches and clocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from finetune_operator.errors import ApiError

from tests.support.simulation.fault_kinds import End, fault
from tests.support.simulation.network import WATCHED, Request, Strike
from tests.support.simulation.server import (
    CHILDREN,
    CLAIMS,
    PODS,
    Body,
    read_path,
    refuse,
)

if TYPE_CHECKING:
    from tests.support.simulation.life import Life


# -- requests ----------------------------------------------------------------------------------------------------


def strike_requests(life: Life, strike: Strike) -> End:
    """Let `strike` see every request until the fault ends."""
    kind = life.beginning

    def counted(request: Request) -> bool:
        struck = strike(request)
        life.hits[kind] += struck
        return struck

    life.network.strikes.append(counted)
    return lambda: life.network.strikes.remove(counted)


def _answers(name: str, error: Callable[[random.Random], ApiError], longest: float = 60.0) -> None:
    """A fault that answers some requests, or all of them, with an error."""

    def begin(life: Life, draw: random.Random) -> End:
        share = draw.choice([0.2, 0.5, 1.0])

        def strike(request: Request) -> bool:
            if draw.random() >= share:
                return False
            request.answer = error(draw)
            return True

        return strike_requests(life, strike)

    fault(name, longest, harmless=True)(begin)


_answers("connection reset before sending", lambda _: ApiError(0, "Unreachable", "ConnectionResetError"))
_answers(
    "429 with Retry-After",
    lambda draw: refuse(429, "TooManyRequests", "slow down", retry_after=draw.randint(1, 10)),
)
_answers("500", lambda _: refuse(500, "InternalError", "etcdserver: request timed out"))
_answers(
    "503", lambda draw: refuse(503, "ServiceUnavailable", "no endpoints", retry_after=draw.choice([0, 3]))
)


@fault("answer lost", harmless=True)
def _answer_lost(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        if draw.random() >= 0.4:
            return False
        request.lost = ApiError(0, "Unreachable", "ServerDisconnectedError")
        return True

    return strike_requests(life, strike)


@fault("slow answers", harmless=True)
def _slow_answers(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        request.seconds = draw.choice([0.0, 0.5, 5.0, 20.0])
        return request.seconds > 0

    return strike_requests(life, strike)


@fault("latency", harmless=True)
def _latency(life: Life, draw: random.Random) -> End:
    life.network.latency = draw.choice([0.5, 2.0, 6.0])

    def end() -> None:
        life.network.latency = 0.0

    return end


@fault("409 because somebody else has written", harmless=True)
def _conflict(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        held = _target(life, request)
        if held is None or request.method not in {"PATCH", "PUT"} or draw.random() < 0.5:
            return False
        annotations = {**held["metadata"].get("annotations", {}), "touched": str(life.server.version)}
        life.server.change(read_path(request.path)[0], held, metadata={"annotations": annotations})
        return True

    return strike_requests(life, strike)


@fault("404 because the object has just been deleted")
def _vanished(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        plural, held = read_path(request.path)[0], _target(life, request)
        if held is None or request.method not in {"PATCH", "DELETE"} or plural not in {CHILDREN, PODS}:
            return False
        if draw.random() < 0.5:
            return False
        life.server.delete(plural, held)
        return True

    return strike_requests(life, strike)


@fault("410 in the middle of a list", harmless=True)
def _expired(life: Life, draw: random.Random) -> End:
    del draw
    failed: set[str] = set()

    def strike(request: Request) -> bool:
        if request.method != "GET" or read_path(request.path)[2] or request.path in failed:
            return False
        if not request.query.get("continue"):
            request.query = {**request.query, "limit": "0"}
            return False
        failed.add(request.path)
        request.answer = refuse(410, "Expired", "the continue parameter is too old")
        return True

    return strike_requests(life, strike)


@fault("quota", longest=200.0, harmless=True)
def _quota(life: Life, draw: random.Random) -> End:
    plurals = draw.choice([(CHILDREN,), (CLAIMS,), (CHILDREN, CLAIMS)])
    text = f"forbidden: exceeded quota: team, requested: 1, used: {draw.randint(1, 9)}, limited: 9"
    return _refuse_creation(life, plurals, refuse(403, "Forbidden", text))


@fault("webhook unreachable", longest=200.0, harmless=True)
def _webhook(life: Life, draw: random.Random) -> End:
    del draw
    text = 'Internal error occurred: failed calling webhook "policy": connection refused'
    return _refuse_creation(life, (CHILDREN, CLAIMS), refuse(500, "InternalError", text))


def _refuse_creation(life: Life, plurals: Iterable[str], error: ApiError) -> End:
    life.server.refusals.update(dict.fromkeys(plurals, error))
    return life.server.refusals.clear


def _target(life: Life, request: Request) -> Body | None:
    plural, namespace, name, _ = read_path(request.path)
    return life.server.get(plural, namespace, name) if plural in life.server.objects else None


# -- watches -----------------------------------------------------------------------------------------------------


@fault("lagging watch", longest=120.0, harmless=True)
def _lag(life: Life, draw: random.Random) -> End:
    plurals = draw.sample(WATCHED, draw.randint(1, len(WATCHED)))
    life.network.lag.update({plural: draw.choice([1.0, 5.0, 30.0, 90.0]) for plural in plurals})
    return life.network.lag.clear


@fault("watch breaks", longest=120.0, harmless=True)
def _break(life: Life, draw: random.Random) -> End:
    plurals = draw.sample(WATCHED, draw.randint(1, len(WATCHED)))
    broken = [
        operator.watches.streams[plural]
        for operator in life.deployment.operators
        if operator.watches is not None
        for plural in plurals
    ]
    for stream in broken:
        stream.disconnect()

    def end() -> None:
        for stream in broken:
            stream.reconnect()

    return end


@fault("lost events", harmless=True)
def _lose_events(life: Life, draw: random.Random) -> End:
    life.network.drop = {plural: draw.randint(1, 6) for plural in draw.sample(WATCHED, 3)}
    return life.network.drop.clear


@fault("repeated events", longest=120.0, harmless=True)
def _repeat(life: Life, draw: random.Random) -> End:
    del draw
    life.network.repeat = True
    return lambda: setattr(life.network, "repeat", False)


@fault("reordered events", longest=120.0, harmless=True)
def _reorder(life: Life, draw: random.Random) -> End:
    del draw
    life.network.reorder = True
    return lambda: setattr(life.network, "reorder", False)


# -- clocks ------------------------------------------------------------------------------------------------------


def _jump(life: Life, seconds: float) -> End:
    def set_skew(skew: float) -> None:
        life.skew = skew
        for operator in life.deployment.operators:
            operator.skew = skew

    set_skew(seconds)
    return lambda: set_skew(0.0)


@fault("clock jumps forward", harmless=True)
def _jump_forward(life: Life, draw: random.Random) -> End:
    return _jump(life, draw.choice([2.0, 90.0, 3600.0]))


@fault("clock jumps back", harmless=True)
def _jump_back(life: Life, draw: random.Random) -> End:
    return _jump(life, -draw.choice([2.0, 90.0, 3600.0]))
