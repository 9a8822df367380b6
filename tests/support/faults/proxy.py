"""An HTTPS proxy between one operator process and the API server, which makes faults happen on the way.

It ends TLS with a certificate of its own authority, and it passes the operator's own token on. So the API server sees the
operator's requests as they are, and its audit log holds them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from enum import Enum
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.support.faults.calls import WATCH, Call, parse_call
from tests.support.faults.kinds import LATENCY, RETRY_AFTER, STATUSES, Fault, Kind

_NOT_PASSED = frozenset({"host", "accept-encoding", "connection", "content-length", "transfer-encoding"})
_NOT_RETURNED = frozenset({"content-length", "transfer-encoding", "connection", "content-encoding"})
_NOW = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset."""


class Moment(Enum):
    """A moment of a request."""

    BEFORE = "before"
    AFTER = "after"


Gate = Callable[[Call, Moment], Awaitable[bool]]
"""Called before a request is passed on and after the server handled it. If it returns False, the connection is reset."""


class FaultProxy:
    """Serves one operator process, and lets faults happen to its requests."""

    def __init__(self, server: str, trust: ssl.SSLContext, certificate: ssl.SSLContext) -> None:
        """`server` is the URL of the API server, `trust` verifies it, and `certificate` is shown to the operator."""
        self._server = server
        self._trust = trust
        self._certificate = certificate
        self._faults: list[Fault] = []
        self._watches: dict[int, tuple[web.Request, Call]] = {}
        self._released = asyncio.Event()
        self._handlers: set[asyncio.Task[Any]] = set()
        self.gate: Gate | None = None
        self.calls: list[tuple[float, Call, int]] = []
        """Every request with the time and the status of its answer, 0 for none."""
        self.port = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=self._trust))
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._certificate).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.clear()
        # Watches would wait for their next event.
        for task in list(self._handlers):
            task.cancel()
        await asyncio.wait({*self._handlers, asyncio.ensure_future(asyncio.sleep(0))})
        await self._session.close()
        await self._runner.cleanup()

    def inject(self, fault: Fault) -> None:
        """Let this fault strike from now on. A watch that it concerns is cut, so that a new request meets the fault."""
        self._faults.append(fault)
        if fault.verb == WATCH and fault.kind not in {Kind.DROPPED, Kind.DUPLICATED}:
            for request, call in list(self._watches.values()):
                if fault.matches(call):
                    _reset(request)

    def clear(self) -> None:
        """End all faults. Connections that hang are reset."""
        self._faults.clear()
        self._released.set()
        self._released = asyncio.Event()

    @property
    def watched(self) -> set[str]:
        """The resources that the operator watches now."""
        return {call.resource for _, call in self._watches.values()}

    def _fault(self, call: Call) -> Fault | None:
        """The fault that concerns a request, first one that is not over."""
        found = [fault for fault in self._faults if fault.matches(call)]
        return next((fault for fault in found if not fault.over), found[-1] if found else None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        call = parse_call(request.method, request.path, request.query)
        status = 0
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            response = await self._meet(request, call)
            status = response.status
        finally:
            self._handlers.discard(task)
            self.calls.append((time.monotonic(), call, status))
        return response

    async def _meet(self, request: web.Request, call: Call) -> web.StreamResponse:
        fault = self._fault(call)
        passes = (
            fault is None
            or fault.kind in {Kind.DROPPED, Kind.DUPLICATED}
            or (fault.kind is Kind.UNAUTHORIZED and _token(request) == fault.token)
            or not fault.strike()
        )
        if fault is None or passes:
            return await self._pass(request, call, fault)
        if fault.kind is Kind.LATENCY:
            await asyncio.sleep(LATENCY)
            return await self._pass(request, call, fault)
        return await self._fail(request, call, fault)

    async def _fail(self, request: web.Request, call: Call, fault: Fault) -> web.StreamResponse:
        """The answer of a fault, if it gives one."""
        match fault.kind:
            case Kind.CLOSED:
                return await _stream(request)
            case Kind.EXPIRED if call.verb == WATCH and len(fault.hits) % 2:
                # The API server mostly says it by an event.
                event = {"type": "ERROR", "object": _status(*STATUSES[Kind.EXPIRED])}
                return await _stream(request, event)
            case kind if kind in STATUSES:
                return _failure(kind)
            case Kind.RESET_AFTER:
                await self._ask(request)
            case Kind.HALF_OPEN:
                await self._hang(request)
        _reset(request)
        return web.Response()

    async def _hang(self, request: web.Request) -> None:
        """Answer nothing until the operator gives up or the fault is cleared."""
        released = self._released
        while not released.is_set() and request.transport is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(released.wait(), 0.1)

    async def _pass(self, request: web.Request, call: Call, fault: Fault | None = None) -> web.StreamResponse:
        if self.gate is not None and not await self.gate(call, Moment.BEFORE):
            _reset(request)
            return web.Response()
        response = await self._watch(request, call) if call.verb == WATCH else await self._ask(request)
        if fault is not None and call.verb != WATCH:
            fault.answer()
        if self.gate is not None and not await self.gate(call, Moment.AFTER):
            _reset(request)
        return response

    async def _ask(self, request: web.Request) -> web.Response:
        """Pass a request on, and return the whole answer. For a watch, it is only its beginning."""
        async with self._request(request) as answer:
            if request.query.get("watch") in {"1", "true"}:
                return web.Response(status=answer.status)
            content = await answer.read()
            return web.Response(status=answer.status, headers=_returned(answer), body=content)

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        async with self._request(request) as answer:
            response = web.StreamResponse(status=answer.status, headers=_returned(answer))
            await response.prepare(request)
            fault = self._fault(call)
            if fault is not None and answer.status == 200:
                fault.answer()
            self._watches[id(request)] = (request, call)
            try:
                before = b""
                async with aclosing(_lines(answer)) as lines:
                    async for line in lines:
                        for each in _changed(line, before, self._fault(call)):
                            await response.write(each)
                        before = line
                await response.write_eof()
            except (aiohttp.ClientError, ConnectionError):
                _reset(request)
            finally:
                del self._watches[id(request)]
            return response

    def _request(self, request: web.Request) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED}
        # What is passed on is read as text.
        headers["Accept-Encoding"] = "identity"
        body = request.content if request.can_read_body else None
        return self._session.request(
            request.method,
            f"{self._server}{request.raw_path}",
            data=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
        )


def _token(request: web.Request) -> str:
    return request.headers.get("Authorization", "").partition(" ")[2].strip()


def _returned(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_RETURNED}


async def _lines(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """The events of a watch, each with its line feed, however long."""
    kept = b""
    async for chunk in answer.content.iter_any():
        *whole, kept = (kept + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"


def _changed(line: bytes, before: bytes, fault: Fault | None) -> list[bytes]:
    """What the operator gets instead of an event of a watch."""
    if fault is None or json.loads(line)["type"] == "BOOKMARK":
        return [line]
    match fault.kind:
        case Kind.DROPPED if fault.strike():
            return []
        case Kind.DUPLICATED if fault.strike():
            # An old event after a new one is the worst repetition.
            return [line, line, *([before] if before else [])]
    return [line]


def _reset(request: web.Request) -> None:
    """Close the operator's connection with a TCP reset."""
    transport = request.transport
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
    transport.abort()


def _failure(kind: Kind) -> web.Response:
    code, reason = STATUSES[kind]
    return web.json_response(
        _status(code, reason),
        status=code,
        headers={"Retry-After": str(RETRY_AFTER)} if kind is Kind.TOO_MANY else None,
    )


def _status(code: int, reason: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"a fault of the test: {reason}",
        "reason": reason,
        "code": code,
    }


async def _stream(request: web.Request, *events: dict[str, Any]) -> web.StreamResponse:
    """A watch that the server closes after these events."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for event in events:
        # The API server writes no spaces.
        await response.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
    await response.write_eof()
    return response
