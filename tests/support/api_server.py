"""A small API server on a free port, for tests of the operator's calls: it stores objects, or responds as a test says."""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.rate_limiter import TokenBucket
from kubernetes.aio.client import Configuration

Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def serving(
    handler: Handler, observe: Callable[[str, str], None] | None = None
) -> AsyncIterator[ApiClient]:
    """A client of an API server that answers every request with `handler`."""

    async def handle(request: web.Request) -> web.Response:
        # The router warns about a handler that is not a coroutine function, such as an object with `__call__`.
        return await handler(request)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    configuration.retries = None
    bucket = TokenBucket(1000, 1000, time.monotonic)
    api = ApiClient(configuration, bucket, observe or (lambda _method, _code: None))
    try:
        yield api
    finally:
        await api.close()
        await runner.cleanup()


def failure(status: int, message: str = "no") -> web.Response:
    """A response with a Status object."""
    reasons = {403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 422: "Invalid"}
    body = {"kind": "Status", "reason": reasons.get(status, "InternalError"), "message": message}
    return web.json_response(body, status=status)


class ObjectServer:
    """Objects by path, with uids, resource versions and preconditions, and a log of the requests."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: dict[tuple[str, str], int] = {}
        """Statuses with which to answer, by method and path."""
        self.messages: dict[tuple[str, str], str] = {}
        """The messages of these answers, if they are not `no`."""
        self.delays: dict[tuple[str, str], Callable[[], Awaitable[Any]]] = {}
        """What a request waits for before it is answered, by method and path."""
        self.version = 100

    def put(self, collection: str, body: dict[str, Any]) -> dict[str, Any]:
        """Store an object as the API server would; returns the stored form."""
        body = copy.deepcopy(body)
        self.version += 1
        metadata = body["metadata"]
        metadata.setdefault("uid", f"uid-{self.version}")
        metadata.setdefault("creationTimestamp", "2026-11-24T09:00:00Z")
        metadata["resourceVersion"] = str(self.version)
        self.objects[f"{collection}/{metadata['name']}"] = body
        return body

    def named(self, name: str) -> dict[str, Any] | None:
        """The object of this name."""
        return next((body for body in self.objects.values() if body["metadata"]["name"] == name), None)

    async def __call__(self, request: web.Request) -> web.Response:
        """Answer one request."""
        body = await request.json() if request.can_read_body else {}
        if (request.method, request.path) in self.delays:
            await self.delays[request.method, request.path]()
        return self.respond(request.method, request.path, request.query, body)

    def respond(self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any]) -> web.Response:
        """The response to one request."""
        self.requests.append((method, path))
        if (method, path) in self.failures:
            return failure(self.failures[method, path], self.messages.get((method, path), "no"))
        match method:
            case "POST" if query.get("dryRun"):
                return web.json_response(body, status=201)
            case "POST":
                return self._post(path, body)
            case "PATCH":
                return self._patch(path, body)
            case "DELETE":
                return self._delete(path, body)
            case _:
                return self._get(path, query.get("labelSelector", ""))

    def _get(self, path: str, selector: str) -> web.Response:
        if path in self.objects:
            return web.json_response(self.objects[path])
        items = [
            body
            for key, body in self.objects.items()
            if key.rpartition("/")[0] == path and _selects(selector, body["metadata"].get("labels") or {})
        ]
        if not items and not path.rpartition("/")[2].endswith("s"):
            return failure(404)
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    def _post(self, path: str, body: dict[str, Any]) -> web.Response:
        if f"{path}/{body['metadata']['name']}" in self.objects:
            return failure(409, "exists")
        return web.json_response(self.put(path, body), status=201)

    def _patch(self, path: str, body: dict[str, Any]) -> web.Response:
        path = path.removesuffix("/status")
        held = self.objects.get(path)
        if held is None:
            return failure(404)
        asked = body.get("metadata") or {}
        if (
            asked.get("resourceVersion", held["metadata"]["resourceVersion"])
            != held["metadata"]["resourceVersion"]
        ):
            return failure(409, "changed")
        if asked.get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
            return failure(422, "another uid")
        kept = {"apiVersion", "kind", "metadata", "spec"}
        merged = {**held, **{name: value for name, value in body.items() if name not in kept}}
        merged["spec"] = {**held.get("spec", {}), **body.get("spec", {})}
        return web.json_response(self.put(path.rpartition("/")[0], merged))

    def _delete(self, path: str, body: dict[str, Any]) -> web.Response:
        held = self.objects.get(path)
        if held is None:
            return failure(404)
        if body["preconditions"]["uid"] != held["metadata"]["uid"]:
            return failure(409, "another uid")
        del self.objects[path]
        return web.json_response({})


def _selects(selector: str, labels: dict[str, str]) -> bool:
    """True if a selector of one requirement (`key`, `key=value` or `key in (a,b)`) selects these labels."""
    key, _, values = selector.partition(" in ")
    if values:
        return labels.get(key) in values.strip("()").split(",")
    key, equals, value = selector.partition("=")
    return not key or (labels.get(key) == value if equals else key in labels)
