"""The way between one operator and the API server: requests, and the watches as Kopf runs them.

It replaces only what speaks HTTP. The client's rate limit, retries and refusals are the product's own.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_operator.api.stages import JOB_LABEL, KIND
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.fence import Fence
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.outage import Outage
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.cluster.resources import jobs_path
from finetune_operator.cluster.watches import deliver
from finetune_operator.errors import ApiError

from tests.support.simulation.server import CHILDREN, CLAIMS, JOBS, NODES, PODS, Body, Change, Server

if TYPE_CHECKING:
    from tests.support.simulation.life import Life
    from tests.support.simulation.operators import Operator

WATCHED = (JOBS, CHILDREN, PODS, CLAIMS, NODES)
WRITES = frozenset({"POST", "PATCH", "PUT", "DELETE"})
LOST_WITH_OPERATOR = 0.5
"""Share of the requests on the way that are lost with the operator that has sent them."""
Strike = Callable[["Request"], bool]
"""What a fault does to one request, by changing its fields; returns True if it does anything."""


@dataclass
class Request:
    """One request on its way. A fault may change what becomes of it."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Mapping[str, Any]
    operator: Operator
    answer: ApiError | None = None
    """The error with which the fault answers in the server's place."""
    lost: ApiError | None = None
    """The error that replaces the answer, although the server has obeyed."""
    kill: str = ""
    """The operator dies `before` or `after` the server obeys."""
    seconds: float = 0.0
    """Additional time of the answer."""

    @property
    def writes(self) -> bool:
        """True if it changes an object of a job."""
        return self.method in WRITES and "dryRun" not in self.query and not self.path.endswith("/events")


@dataclass
class Network:
    """The faults that are on the way at present."""

    random: random.Random
    strikes: list[Strike] = field(default_factory=list)
    latency: float = 0.0
    """Additional seconds of every request."""
    lag: dict[str, float] = field(default_factory=dict)
    """Additional seconds of the watch of each kind."""
    drop: dict[str, int] = field(default_factory=dict)
    """Number of the next events of each kind that get lost."""
    repeat: bool = False
    """True while events come again later."""
    reorder: bool = False
    """True while events of one kind overtake each other."""


class SimulatedApi(ApiClient):
    """The real client, whose requests reach the model of the API server."""

    def __init__(self, life: Life, operator: Operator, *, qps: float, burst: int) -> None:
        # Not the constructor of the client: it would open a pool of connections.
        self._life = life
        self._operator = operator
        clock = life.loop.time
        self._clock = clock
        self._bucket = TokenBucket(qps, burst, clock)
        self._observe = lambda _method, _code: None
        self._random = life.random
        self.fence = Fence(clock)
        self.outage = Outage(clock, self._random.random, self._bucket.restart)

    async def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send one request, unless its FineTuneJob is known to be deleted."""
        if method in WRITES and not options.get("aside"):
            self._life.checks.before_write(
                self._operator, method, path, options.get("query") or {}, options.get("body") or {}
            )
        return await super().call(method, path, **options)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        del content_type
        life = self._life
        request = Request(method, path, query or {}, body or {}, self._operator)
        answer: asyncio.Future[Body] = life.loop.create_future()
        flight = life.network.random.uniform(0.001, 0.02) + life.network.latency
        # What is on the way belongs to nobody: it arrives even if the operator is stopped or dies meanwhile.
        life.loop.call_later(flight, self._arrive, request, answer, context=contextvars.Context())
        return await answer

    def _arrive(self, request: Request, answer: asyncio.Future[Body]) -> None:
        """Let the faults and the server answer a request."""
        life, operator = self._life, self._operator
        if not operator.alive and life.network.random.random() < LOST_WITH_OPERATOR:
            # It was sent together with others, any of which the server may have received.
            return
        for strike in list(life.network.strikes):
            strike(request)
        if request.kill == "before":
            operator.kill()
            return
        found = request.answer or self._obey(request)
        status = found.status if isinstance(found, ApiError) else 200
        if status != 200 or not request.path.endswith("/events"):
            life.note("answer", operator.identity, request.method, request.path, status)
        if request.kill == "after":
            operator.kill()
        elif request.seconds:
            life.loop.call_later(request.seconds, _settle, answer, request.lost or found)
        else:
            _settle(answer, request.lost or found)

    def _obey(self, request: Request) -> Body | ApiError:
        try:
            return self._life.server.respond(request.method, request.path, request.query, request.body)
        except ApiError as error:
            return error


def _settle(answer: asyncio.Future[Body], found: Body | ApiError) -> None:
    """Deliver an answer, unless nobody waits for it any more."""
    if answer.done():
        return
    if isinstance(found, ApiError):
        answer.set_exception(found)
    else:
        answer.set_result(found)


class Watches:
    """The watches of one operator."""

    def __init__(self, life: Life, operator: Operator, informer: Informer) -> None:
        self.streams = {plural: Stream(life, operator, informer, plural) for plural in WATCHED}

    def close(self) -> None:
        """End all watches."""
        for stream in self.streams.values():
            stream.close()


class Stream:
    """The watch of one kind: it lists, then it follows; after a break it does both again."""

    def __init__(self, life: Life, operator: Operator, informer: Informer, plural: str) -> None:
        self._life = life
        self._operator = operator
        self._informer = informer
        self._plural = plural
        self._connected = False
        self._generation = 0
        self._events: deque[tuple[float, str, Body]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        life.server.listeners.append(self._notice)
        self.connect()

    def connect(self) -> None:
        """List the objects, and follow from there. FineTuneJobs are followed from the operator's own list, if it is new."""
        server: Server = self._life.server
        self._connected = True
        self._generation += 1
        listed = self._informer.listed.take(jobs_path()) or 0 if self._plural == JOBS else 0
        for body in server.all(self._plural):
            if self._selects(body) and int(body["metadata"]["resourceVersion"]) > listed:
                self._queue("", body)

    def disconnect(self) -> None:
        """Lose the events that are on their way, and miss what happens from now on."""
        self._connected = False
        self._events.clear()

    def reconnect(self) -> None:
        """List and follow again, unless the watch has ended."""
        if self._notice in self._life.server.listeners:
            self.connect()

    def close(self) -> None:
        """End for good."""
        self.disconnect()
        if self._notice in self._life.server.listeners:
            self._life.server.listeners.remove(self._notice)

    def _selects(self, body: Body) -> bool:
        return self._plural in {JOBS, NODES} or JOB_LABEL in (body["metadata"].get("labels") or {})

    def _notice(self, change: Change) -> None:
        if change.plural != self._plural or not self._connected:
            return
        kind, body = change.type, change.body
        before = change.before is not None and self._selects(change.before)
        if not self._selects(body):
            if not before or change.before is None:
                return
            # The object has left the selection, so the watch shows its former content at the new version.
            version = {"resourceVersion": body["metadata"]["resourceVersion"]}
            kind = "DELETED"
            body = {**change.before, "metadata": {**change.before["metadata"], **version}}
        elif kind == "MODIFIED" and not before:
            kind = "ADDED"
        network = self._life.network
        if network.drop.get(self._plural, 0) > 0:
            network.drop[self._plural] -= 1
            return
        self._queue(kind, body)
        if network.repeat and network.random.random() < 0.5:
            self._life.loop.call_later(
                network.random.uniform(0.5, 20.0), self._again, self._generation, kind, body
            )

    def _again(self, generation: int, kind: str, body: Body) -> None:
        if self._connected and generation == self._generation:
            self._queue(kind, body)

    def _queue(self, kind: str, body: Body) -> None:
        network = self._life.network
        due = (
            self._life.loop.time() + network.random.uniform(0.002, 0.05) + network.lag.get(self._plural, 0.0)
        )
        if network.reorder:
            self._life.loop.call_at(
                due + network.random.uniform(0.0, 3.0), self._deliver_late, self._generation, kind, body
            )
            return
        if self._events and self._events[-1][0] > due:
            due = self._events[-1][0]
        self._events.append((due, kind, body))
        if self._timer is None:
            self._timer = self._life.loop.call_at(due, self._deliver_due, context=self._operator.context)

    def _deliver_late(self, generation: int, kind: str, body: Body) -> None:
        if self._connected and generation == self._generation:
            self._deliver(kind, body)

    def _deliver_due(self) -> None:
        self._timer = None
        now = self._life.loop.time()
        while self._events and self._events[0][0] <= now:
            _, kind, body = self._events.popleft()
            self._deliver(kind, body)
        if self._events:
            self._timer = self._life.loop.call_at(
                self._events[0][0], self._deliver_due, context=self._operator.context
            )

    def _deliver(self, kind: str, body: Body) -> None:
        if not self._operator.alive:
            return
        if kind == "DELETED" and self._plural == JOBS:
            self._operator.deleted.add(body["metadata"]["uid"])
        deliver(self._informer, self._plural, {"type": kind or None, "object": body})


def owner_uid(body: Mapping[str, Any]) -> str:
    """uid of the FineTuneJob that owns an object; empty if none does."""
    for owner in body.get("metadata", {}).get("ownerReferences") or ():
        if owner["kind"] == KIND:
            return str(owner["uid"])
    return ""
