"""An API server for the Python client, in a thread of its own: FineTuneJobs, pods, and commands in pods by WebSocket.

Tests with a real API server are in tests/e2e/test_client.py.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from kubernetes import client

from tests.support.api_server import failure

_STDOUT, _STDERR, _STATUS = 1, 2, 3
_FRAME_BYTES = 1000
"""Small, so that files and headers of an archive begin and end inside of frames."""


class JobsServer:
    """What the server has and what it was asked. A job with several states changes with each look at it."""

    def __init__(self) -> None:
        self.states: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self.failures: deque[int | None] = deque()
        """Statuses of the next answers; None breaks the connection off."""
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        """Method, path, query and body of each request."""
        self.pod: dict[str, Any] = {"phase": "Running"}
        """The status of every pod."""
        self.root = ""
        """The folder of this machine that a pod sees as `/artifact`."""
        self.commands: list[list[str]] = []
        self.broken: str | None = None
        """A shell command that runs instead of the command in the pod."""

    def put(self, *states: dict[str, Any]) -> None:
        """Store the states of one job, the first one first."""
        for number, state in enumerate(states):
            name = state["metadata"]["name"]
            metadata = {"uid": f"uid-{name}", "resourceVersion": str(number), **state["metadata"]}
            self.states[name].append({**state, "metadata": metadata})

    def bodies(self, method: str) -> list[Any]:
        """The bodies of all requests of a method."""
        return [body for asked, _, _, body in self.requests if asked == method]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = json.loads(await request.text() or "null")
        self.requests.append((request.method, request.path, dict(request.query), body))
        if self.failures:
            status = self.failures.popleft()
            if status is None:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return failure(status)
        if request.path.endswith("/exec"):
            return await self._execute(request)
        if "/pods" in request.path:
            pod = {"metadata": {"name": "reader-1"}, "spec": {"containers": []}, "status": self.pod}
            return web.json_response(pod)
        return self._jobs(request.method, request.path.rpartition("/")[2], body)

    def _jobs(self, method: str, name: str, body: Any) -> web.Response:
        if method == "POST":
            return web.json_response(body, status=201)
        if name == "finetunejobs":
            return web.json_response({"items": [states[0] for states in self.states.values()]})
        states = self.states.get(name)
        if not states:
            return failure(404)
        if method == "PATCH":
            states[0] = {**states[0], "spec": {**states[0]["spec"], **body["spec"]}}
        job = states[0]
        if method == "GET" and len(states) > 1:
            states.popleft()
        return web.json_response(job)

    async def _execute(self, request: web.Request) -> web.WebSocketResponse:
        """Run the command on this machine, and send its output as the kubelet does."""
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
        await socket.prepare(request)
        command = request.query.getall("command")
        self.commands.append(command)
        here = [word.replace("/artifact", self.root) for word in command]
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", self.broken] if self.broken else here,
            capture_output=True,
            check=False,
        )
        for channel, output in ((_STDOUT, done.stdout), (_STDERR, done.stderr)):
            for start in range(0, len(output), _FRAME_BYTES):
                await socket.send_bytes(bytes([channel]) + output[start : start + _FRAME_BYTES])
        status = {"status": "Success" if done.returncode == 0 else "Failure"}
        if done.returncode == 0:
            await socket.send_bytes(bytes([_STATUS]) + json.dumps(status).encode())
        await socket.close()
        return socket


@contextmanager
def serving_jobs(server: JobsServer) -> Iterator[client.ApiClient]:
    """Yield the library's connection to `server`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    settings = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    settings.retries = False
    try:
        with client.ApiClient(settings) as api:
            yield api
            api.rest_client.pool_manager.clear()
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
