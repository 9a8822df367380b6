"""Every kind of fault: what begins it, and what ends it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_operator.api.stages import JOB_LABEL
from finetune_operator.errors import ApiError

from tests.support.simulation.controllers import ENDED, is_finished
from tests.support.simulation.network import WATCHED, Request, Strike
from tests.support.simulation.server import (
    CHILDREN,
    CLAIMS,
    JOBS,
    NODES,
    PODS,
    Body,
    read_path,
    refuse,
)

if TYPE_CHECKING:
    from tests.support.simulation.life import Life

USERS_CLAIMS = ("models", "artifacts")
"""Claims that the users have made."""

End = Callable[[], None]
Begin = Callable[["Life", random.Random], End | None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    begin: Begin
    """Begins the fault, and returns what ends it; None if there is nothing that it could hit."""
    longest: float
    """Seconds."""
    replicas: int = 1
    """Number of operators that it needs."""
    harmless: bool = False
    """True if it costs no work: no job fails for it, and no stage runs twice."""


FAULTS: dict[str, Fault] = {}


def _fault(
    name: str, longest: float = 60.0, *, replicas: int = 1, harmless: bool = False
) -> Callable[[Begin], Begin]:
    def add(begin: Begin) -> Begin:
        FAULTS[name] = Fault(name, begin, longest, replicas, harmless)
        return begin

    return add


def _nothing() -> None:
    """A fault that needs no end."""


# -- requests ----------------------------------------------------------------------------------------------------


def _strike(life: Life, strike: Strike) -> End:
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

        return _strike(life, strike)

    _fault(name, longest, harmless=True)(begin)


_answers("connection reset before sending", lambda _: ApiError(0, "Unreachable", "ConnectionResetError"))
_answers(
    "429 with Retry-After",
    lambda draw: refuse(429, "TooManyRequests", "slow down", retry_after=draw.randint(1, 10)),
)
_answers("500", lambda _: refuse(500, "InternalError", "etcdserver: request timed out"))
_answers(
    "503", lambda draw: refuse(503, "ServiceUnavailable", "no endpoints", retry_after=draw.choice([0, 3]))
)


@_fault("answer lost", harmless=True)
def _answer_lost(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        if draw.random() >= 0.4:
            return False
        request.lost = ApiError(0, "Unreachable", "ServerDisconnectedError")
        return True

    return _strike(life, strike)


@_fault("slow answers", harmless=True)
def _slow_answers(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        request.seconds = draw.choice([0.0, 0.5, 5.0, 20.0])
        return request.seconds > 0

    return _strike(life, strike)


@_fault("latency", harmless=True)
def _latency(life: Life, draw: random.Random) -> End:
    life.network.latency = draw.choice([0.5, 2.0, 6.0])

    def end() -> None:
        life.network.latency = 0.0

    return end


@_fault("409 because somebody else has written", harmless=True)
def _conflict(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        held = _target(life, request)
        if held is None or request.method not in {"PATCH", "PUT"} or draw.random() < 0.5:
            return False
        annotations = {**held["metadata"].get("annotations", {}), "touched": str(life.server.version)}
        life.server.change(read_path(request.path)[0], held, metadata={"annotations": annotations})
        return True

    return _strike(life, strike)


@_fault("404 because the object has just been deleted")
def _vanished(life: Life, draw: random.Random) -> End:
    def strike(request: Request) -> bool:
        plural, held = read_path(request.path)[0], _target(life, request)
        if held is None or request.method not in {"PATCH", "DELETE"} or plural not in {CHILDREN, PODS}:
            return False
        if draw.random() < 0.5:
            return False
        life.server.delete(plural, held)
        return True

    return _strike(life, strike)


@_fault("410 in the middle of a list", harmless=True)
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

    return _strike(life, strike)


@_fault("quota", longest=200.0, harmless=True)
def _quota(life: Life, draw: random.Random) -> End:
    plurals = draw.choice([(CHILDREN,), (CLAIMS,), (CHILDREN, CLAIMS)])
    text = f"forbidden: exceeded quota: team, requested: 1, used: {draw.randint(1, 9)}, limited: 9"
    return _refuse_creation(life, plurals, refuse(403, "Forbidden", text))


@_fault("webhook unreachable", longest=200.0, harmless=True)
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


@_fault("lagging watch", longest=120.0, harmless=True)
def _lag(life: Life, draw: random.Random) -> End:
    plurals = draw.sample(WATCHED, draw.randint(1, len(WATCHED)))
    life.network.lag.update({plural: draw.choice([1.0, 5.0, 30.0, 90.0]) for plural in plurals})
    return life.network.lag.clear


@_fault("watch breaks", longest=120.0, harmless=True)
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


@_fault("lost events", harmless=True)
def _lose_events(life: Life, draw: random.Random) -> End:
    life.network.drop = {plural: draw.randint(1, 6) for plural in draw.sample(WATCHED, 3)}
    return life.network.drop.clear


@_fault("repeated events", longest=120.0, harmless=True)
def _repeat(life: Life, draw: random.Random) -> End:
    del draw
    life.network.repeat = True
    return lambda: setattr(life.network, "repeat", False)


@_fault("reordered events", longest=120.0, harmless=True)
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


@_fault("clock jumps forward", harmless=True)
def _jump_forward(life: Life, draw: random.Random) -> End:
    return _jump(life, draw.choice([2.0, 90.0, 3600.0]))


@_fault("clock jumps back", harmless=True)
def _jump_back(life: Life, draw: random.Random) -> End:
    return _jump(life, -draw.choice([2.0, 90.0, 3600.0]))


# -- users -------------------------------------------------------------------------------------------------------


def _some(life: Life, draw: random.Random, plural: str) -> Body | None:
    found = life.server.all(plural)
    found = [body for body in found if JOB_LABEL in body["metadata"].get("labels", {}) or plural == JOBS]
    return draw.choice(found) if found else None


@_fault("status lost")
def _lose_status(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None
    life.checks.forget_status(job["metadata"]["uid"])
    life.server.change(JOBS, job, status={})
    return _nothing


@_fault("FineTuneJob deleted")
def _delete_job(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None
    life.server.delete(JOBS, job, propagation=draw.choice(PROPAGATIONS))
    return lambda: _remove_orphans(life)


@_fault("namesake", longest=20.0)
def _namesake(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None
    life.server.delete(JOBS, job, propagation=draw.choice(PROPAGATIONS))
    life.recreate(job, draw.uniform(0.0, 15.0))
    return lambda: _remove_orphans(life)


@_fault("user suspends", longest=120.0)
def _suspend(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None

    def set_suspend(*, suspend: bool) -> None:
        present = life.server.current(JOBS, job)
        if present is not None:
            life.server.change(JOBS, present, spec={**present["spec"], "suspend": suspend})

    set_suspend(suspend=True)
    return lambda: set_suspend(suspend=False)


PROPAGATIONS = ("Background", "Background", "Foreground", "Orphan")


def _remove_orphans(life: Life) -> None:
    """Let a user tidy up what a deletion without dependents has left."""
    for plural in (CHILDREN, PODS, CLAIMS):
        for body in life.server.all(plural):
            metadata = body["metadata"]
            if not metadata.get("ownerReferences") and metadata["name"] not in USERS_CLAIMS:
                life.server.delete(plural, body)


# -- children ----------------------------------------------------------------------------------------------------


@_fault("Job deleted")
def _delete_child(life: Life, draw: random.Random) -> End | None:
    child = _some(life, draw, CHILDREN)
    if child is None:
        return None
    life.server.delete(CHILDREN, child, propagation=draw.choice(PROPAGATIONS))
    return lambda: _remove_orphans(life)


@_fault("pod deleted")
def _delete_pod(life: Life, draw: random.Random) -> End | None:
    pod = _some(life, draw, PODS)
    if pod is None:
        return None
    life.server.delete(PODS, pod)
    return _nothing


@_fault("pod evicted")
def _evict(life: Life, draw: random.Random) -> End | None:
    pod = _some(life, draw, PODS)
    if pod is None:
        return None
    life.nodes.evict(pod)
    return _nothing


@_fault("label removed", harmless=True)
def _unlabel(life: Life, draw: random.Random) -> End | None:
    plural = draw.choice([CHILDREN, PODS, CLAIMS])
    body = _some(life, draw, plural)
    if body is None:
        return None
    labels = {key: value for key, value in body["metadata"]["labels"].items() if key != JOB_LABEL}
    life.server.change(plural, body, metadata={"labels": labels})
    return _nothing


@_fault("Job suspended by somebody else", longest=120.0)
def _suspend_child(life: Life, draw: random.Random) -> End | None:
    child = _some(life, draw, CHILDREN)
    if child is None or is_finished(child) or child["spec"].get("suspend"):
        return None
    life.server.change(CHILDREN, child, spec={**child["spec"], "suspend": True})
    uid = child["metadata"]["uid"]
    life.checks.suspended.add(uid)

    def end() -> None:
        life.checks.suspended.discard(uid)
        present = life.server.current(CHILDREN, child)
        if present is not None:
            life.server.change(CHILDREN, present, spec={**present["spec"], "suspend": False})

    return end


@_fault("pods never start", longest=900.0, harmless=True)
def _break_images(life: Life, draw: random.Random) -> End:
    del draw
    life.nodes.broken = True

    def end() -> None:
        life.nodes.broken = False
        life.nodes.retry()

    return end


# -- nodes -------------------------------------------------------------------------------------------------------


def _busy_node(life: Life, draw: random.Random) -> Body:
    used = {
        pod["spec"].get("nodeName") for pod in life.server.all(PODS) if pod["status"]["phase"] not in ENDED
    }
    nodes = life.server.all(NODES)
    return draw.choice([node for node in nodes if node["metadata"]["name"] in used] or nodes)


@_fault("node deleted", longest=120.0)
def _delete_node(life: Life, draw: random.Random) -> End:
    node = _busy_node(life, draw)
    life.server.remove(NODES, node)
    return lambda: life.join_node(node)


@_fault("node cut off, then shut down", longest=200.0)
def _shut_down(life: Life, draw: random.Random) -> End:
    node = _busy_node(life, draw)
    name = node["metadata"]["name"]
    life.nodes.cut_off(name)
    life.loop.call_later(draw.uniform(1.0, 100.0), life.nodes.shut_down, name)
    return lambda: life.join_node(node)


@_fault("node cut off", longest=200.0)
def _cut_off(life: Life, draw: random.Random) -> End:
    name = _busy_node(life, draw)["metadata"]["name"]
    life.nodes.cut_off(name)
    return lambda: life.nodes.rejoin(name)


# -- operators ---------------------------------------------------------------------------------------------------


@_fault("operator killed", harmless=True)
def _kill(life: Life, draw: random.Random) -> End | None:
    if not life.deployment.operators:
        return None
    draw.choice(life.deployment.operators).kill()
    return _nothing


@_fault("operator killed at a write", harmless=True)
def _kill_at_write(life: Life, draw: random.Random) -> End:
    left, moment = draw.randint(1, 6), draw.choice(["before", "after"])

    def strike(request: Request) -> bool:
        nonlocal left
        if left == 0 or not request.writes or "/leases" in request.path:
            return False
        left -= 1
        request.kill = moment if left == 0 else ""
        return left == 0

    return _strike(life, strike)


@_fault("leader stopped beyond its Lease", longest=60.0, replicas=2, harmless=True)
def _stop_leader(life: Life, draw: random.Random) -> End | None:
    leaders = [each for each in life.deployment.operators if each.leads]
    if not leaders:
        return None
    leader = draw.choice(leaders)
    life.loop.stop_owner(leader)
    return lambda: life.loop.continue_owner(leader)
