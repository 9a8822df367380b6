"""Polls running trainers for their progress.

A trainer serves its progress on the first free port of ten in its pod. Any container could respond there, so a response
counts only if it names this job's uid, stage and attempt. A false one can damage only the status of its own job. A
trainer that cannot be reached (a network policy, no free port) is ignored: its termination message brings its result.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from finetune_operator.cluster.store import Store
from finetune_operator.contract.reading import MAXIMUM_PROGRESS_BYTES, parse_progress
from finetune_operator.contract.result import Progress
from finetune_operator.errors import MalformedDocumentError
from finetune_operator.observed.observation import ChildJob, JobRecord, Key, Pod

PORTS = 10
REQUEST_TIMEOUT = 2.0
CONCURRENCY = 64

Fetch = Callable[[str, int], Awaitable[bytes | None]]
"""Takes an IP and a port; returns the bytes of the progress document, None if nobody responds."""

_logger = logging.getLogger(__name__)


class ProgressPoller:
    """Keeps the progress in the store up to date and queues the jobs whose progress has changed."""

    def __init__(
        self, store: Store, wake: Callable[[Key], None], fetch: Fetch, port: int, period: float
    ) -> None:
        """`port` is the first of the ports that a trainer tries, `period` in seconds."""
        self._store = store
        self._wake = wake
        self._fetch = fetch
        self._port = port
        self._period = period
        self._found: dict[str, int] = {}
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def run(self) -> None:
        """Poll until canceled."""
        while True:
            await self.poll()
            await asyncio.sleep(self._period)

    async def poll(self) -> None:
        """Ask every running trainer once."""
        running = self._store.running_pods()
        uids = {pod.uid for _, _, pod in running}
        self._found = {uid: port for uid, port in self._found.items() if uid in uids}
        results = await asyncio.gather(*(self._ask(*item) for item in running), return_exceptions=True)
        for (job, _, pod), result in zip(running, results, strict=True):
            if isinstance(result, Exception):
                _logger.error("progress of pod %s/%s", job.namespace, pod.name, exc_info=result)
            elif isinstance(result, BaseException):
                raise result

    async def _ask(self, job: JobRecord, child: ChildJob, pod: Pod) -> None:
        async with self._slots:
            progress = await self._find(job, child, pod)
        if progress is not None and self._store.set_progress(job.key, progress):
            self._wake(job.key)

    async def _find(self, job: JobRecord, child: ChildJob, pod: Pod) -> Progress | None:
        known = self._found.get(pod.uid)
        ports = range(self._port, self._port + PORTS)
        for port in [known] if known is not None else ports:
            body = await self._fetch(pod.ip, port)
            if body is None:
                continue
            try:
                progress = parse_progress(body, uid=job.uid, stage=child.stage, attempt=child.attempt)
            except MalformedDocumentError as error:
                _logger.debug("pod %s port %d: %s", pod.name, port, error)
                continue
            self._found[pod.uid] = port
            return progress
        self._found.pop(pod.uid, None)
        return None


class HttpFetcher:
    """Fetches progress documents, without redirects or proxies, with limits on size and time."""

    def __init__(self) -> None:
        """Must be called in a running event loop."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
        connector = aiohttp.TCPConnector(limit=CONCURRENCY, force_close=True)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def __call__(self, ip: str, port: int) -> bytes | None:
        """Fetch from one port; None if nobody responds there with a document of the allowed size."""
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
        except (aiohttp.ClientError, TimeoutError, OSError):
            # An unreachable trainer is no failure. The next poll tries again.
            return None
