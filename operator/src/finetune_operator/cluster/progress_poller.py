"""Polls running trainers for their progress.

A trainer serves its progress on the first free port of ten in its pod. Any container could respond there, so a response
counts only if it names this job's uid, stage and attempt. A false one can damage only the status of its own job. A
trainer that cannot be reached (a network policy, no free port) is ignored: its termination message brings its result.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol

import aiohttp

from finetune_operator.cluster.poll_schedule import SLOTS, Outcome, PollSchedule, Target
from finetune_operator.cluster.store import Store
from finetune_operator.contract.reading import MAXIMUM_PROGRESS_BYTES, parse_progress
from finetune_operator.contract.result import Progress
from finetune_operator.errors import MalformedDocumentError
from finetune_operator.observed.inventory import Inventory
from finetune_operator.observed.movement import answered, unanswered
from finetune_operator.observed.observation import ChildJob, Key, Pod
from finetune_operator.observed.packed import StoredJob
from finetune_operator.observed.pod_address import OperatorPod, address_obstacle

PORTS = 10
POLL_SECONDS = 2.0
"""Time limit of one poll, for all ports together."""
LOG_SECONDS = 60.0

Fetch = Callable[[str, int], Awaitable[bytes | None]]
"""Takes an IP and a port; returns the bytes of the progress document, None if nobody responds there with one.

It may raise TimeoutError if the port says nothing in time, or MuteError if it accepted the connection before.
"""

Remember = Callable[[StoredJob, Progress], None]
"""Called with each report of a job's trainer."""

_logger = logging.getLogger(__name__)


class MuteError(TimeoutError):
    """A port accepted a connection and said nothing in time: its program hangs. No network policy does that."""


class PollMetrics(Protocol):
    """The poller reports its work here."""

    def polled(self, outcome: str) -> None:
        """One poll ended, as in `Outcome`, or its address was `refused`."""


class ProgressPoller:
    """Keeps the progress in the store up to date and queues the jobs whose progress has changed."""

    def __init__(
        self,
        store: Store,
        inventory: Callable[[], Inventory],
        wake: Callable[[Key], None],
        fetch: Fetch,
        metrics: PollMetrics,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        draw: Callable[[], float],
        *,
        port: int,
        period: float,
        own: OperatorPod,
        remember: Remember | None = None,
    ) -> None:
        """`port` is the first of the ports that a trainer tries, `period` the length of a round in seconds.

        `inventory` returns the present nodes, and `own` is the operator's pod. `clock` is monotonic, in seconds, and `now`
        the wall clock in UTC. `draw` returns numbers from 0 to 1.
        """
        self._store = store
        self._inventory = inventory
        self._wake = wake
        self._fetch = fetch
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._port = port
        self._period = period
        self._own = own
        self._remember = remember
        self._schedule = PollSchedule(period, clock, draw)
        self._found: dict[str, int] = {}
        """The port of each trainer that answered last."""
        self._first: dict[str, int] = {}
        """The index of the port with which the next search of a pod begins, because an earlier port hung."""
        self._answered: dict[str, int] = {}
        """The index of the last port at which each trainer has answered, whatever it does now."""
        self._asking: set[asyncio.Task[None]] = set()
        self._logged = float("-inf")

    async def run(self) -> None:
        """Poll until canceled."""
        try:
            while True:
                started = self._clock()
                await self.poll()
                await asyncio.sleep(max(started + self._period - self._clock(), 0.0))
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)

    async def poll(self) -> None:
        """Ask every running trainer that is due once, for at most the length of a round.

        A trainer that has not answered by then does so beside the next round.
        """
        deadline = self._clock() + self._period
        running = {pod.uid: (job, child, pod) for job, child, pod in self._store.running_pods()}
        self._found = {uid: port for uid, port in self._found.items() if uid in running}
        self._first = {uid: index for uid, index in self._first.items() if uid in running}
        self._answered = {uid: index for uid, index in self._answered.items() if uid in running}
        self._schedule.begin_round(
            Target(pod.uid, job.namespace, pod.resource_version) for job, _, pod in running.values()
        )
        while True:
            while (uid := self._schedule.take()) is not None:
                task = asyncio.create_task(self._ask(*running[uid]))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            left = deadline - self._clock()
            if not self._asking or left <= 0:
                return
            await asyncio.wait(self._asking, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def _ask(self, job: StoredJob, child: ChildJob, pod: Pod) -> None:
        """Ask one trainer. It never fails, whatever the pod does."""
        outcome = Outcome.CLOSED
        try:
            obstacle = address_obstacle(pod, self._inventory(), self._own)
            if obstacle is not None:
                self._metrics.polled("refused")
                self._warn(f"{job.namespace}/{pod.name} is not polled: {obstacle}")
                return
            outcome, progress = await self._find(job, child, pod)
            self._metrics.polled(outcome.value)
            if progress is None:
                return
            self._store.set_movement(
                job.key, answered(self._store.movement(job.key), pod.uid, progress, self._now())
            )
            if self._remember is not None:
                self._remember(job, progress)
            if self._store.set_progress(job.key, progress):
                self._wake(job.key)
        except Exception:
            # The boundary: no pod may stop the polls of the others.
            _logger.exception("progress of pod %s/%s", job.namespace, pod.name)
        finally:
            self._schedule.finish(pod.uid, outcome)

    async def _find(self, job: StoredJob, child: ChildJob, pod: Pod) -> tuple[Outcome, Progress | None]:
        """Ask the port that answered last, or else all ports in turn, within POLL_SECONDS."""
        known = self._found.get(pod.uid)
        first = self._first.get(pod.uid, 0)
        indices = [known] if known is not None else [(first + step) % PORTS for step in range(PORTS)]
        index = first
        try:
            async with asyncio.timeout(POLL_SECONDS):
                for index in indices:
                    progress = await self._fetch_from(self._port + index, job, child, pod)
                    if progress is not None:
                        self._found[pod.uid] = self._answered[pod.uid] = index
                        return Outcome.ANSWERED, progress
        except TimeoutError as error:
            if isinstance(error, MuteError) and index == self._answered.get(pod.uid):
                movement = unanswered(self._store.movement(job.key), pod.uid, self._now())
                if movement is not None:
                    self._store.set_movement(job.key, movement)
            # Something else may hold this port without answering, so the next search begins behind it.
            self._found.pop(pod.uid, None)
            self._first[pod.uid] = (index + 1) % PORTS
            return Outcome.SILENT, None
        self._found.pop(pod.uid, None)
        return Outcome.CLOSED, None

    async def _fetch_from(self, port: int, job: StoredJob, child: ChildJob, pod: Pod) -> Progress | None:
        body = await self._fetch(pod.ip, port)
        if body is None:
            return None
        try:
            return parse_progress(body, uid=job.uid, stage=child.stage, attempt=child.attempt)
        except MalformedDocumentError as error:
            _logger.debug("pod %s port %d: %s", pod.name, port, error)
            return None

    def _warn(self, message: str) -> None:
        """Log a refused address, at most one a minute: a tenant may have thousands."""
        now = self._clock()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            _logger.warning("%s; others may be refused alike, see docs/telemetry.md", message)


class HttpFetcher:
    """Fetches progress documents, without redirects or proxies, with limits on size and time."""

    def __init__(self) -> None:
        """Must be called in a running event loop."""
        # Less than a poll, so that the error tells if the port accepted the connection.
        timeout = aiohttp.ClientTimeout(total=0.9 * POLL_SECONDS, sock_connect=0.5 * POLL_SECONDS)
        connector = aiohttp.TCPConnector(limit=SLOTS, force_close=True)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def __call__(self, ip: str, port: int) -> bytes | None:
        """Fetch from one port; None if nobody responds there with a document of the allowed size.

        Raises TimeoutError if the port says nothing in time, and MuteError if it accepted the connection before that.
        """
        host = f"[{ip}]" if ":" in ip else ip
        try:
            async with self._session.get(f"http://{host}:{port}/progress", allow_redirects=False) as response:
                if response.status != 200:
                    return None
                body = bytearray()
                async for chunk in response.content.iter_chunked(4096):
                    body += chunk
                    if len(body) > MAXIMUM_PROGRESS_BYTES:
                        return None
                return bytes(body)
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError as error:
            raise MuteError from error
        except (aiohttp.ClientError, OSError):
            # An unreachable trainer is no failure. A later poll tries again.
            return None
