"""FineTuneJobs as a load: creates them at once, and notes when the API server reports what becomes of them."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

IN_FLIGHT = 50
"""Requests at once."""
BATCH_JOBS = "/apis/batch/v1/jobs"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Objects without spec and status, which cost this process and the API server least."""


def namespace_of(number: int, namespaces: int) -> str:
    """The namespace of a job."""
    return f"team-{number % namespaces}"


def job_body(number: int, **spec: Any) -> dict[str, Any]:
    """A FineTuneJob of three stages."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": f"job-{number}"},
        "spec": {
            "model": {"source": {"huggingFace": {"repository": "example/model-135m"}}},
            "dataset": {"source": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
            "output": {
                "destination": {"persistentVolumeClaim": {"claimName": "artifacts", "path": f"job-{number}"}}
            },
            "workspace": {"size": "10Gi"},
            **spec,
        },
    }


class Load:
    """An administrator's connections to one API server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    @classmethod
    @asynccontextmanager
    async def connected(cls, kubeconfig: Path) -> AsyncIterator[Self]:
        """Connections for the duration of a `with` block."""
        server, context = _credentials(kubeconfig)
        connector = aiohttp.TCPConnector(limit=200, ssl=context)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=2**22) as session:
            yield cls(session, server)

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request; raises AssertionError for an error status."""
        async with self._session.request(method, self._url + path, json=body) as response:
            text = await response.text()
            assert response.status < 300, f"{method} {path}: {response.status} {text}"
            found: dict[str, Any] = json.loads(text)
            return found

    async def create_namespaces(self, namespaces: int) -> None:
        """Create the namespaces that do not exist yet."""
        held = await self.request("GET", "/api/v1/namespaces")
        names = {item["metadata"]["name"] for item in held["items"]}
        for number in range(namespaces):
            name = namespace_of(number, namespaces)
            if name not in names:
                await self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    async def create_job(self, number: int, namespaces: int, **spec: Any) -> float:
        """Create one FineTuneJob; returns the time (time.monotonic) at which the API server had accepted it."""
        path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace_of(number, namespaces)}/finetunejobs"
        await self.request("POST", path, job_body(number, **spec))
        return time.monotonic()

    async def delete_job(self, number: int, namespaces: int) -> None:
        """Delete one FineTuneJob."""
        where = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace_of(number, namespaces)}/finetunejobs"
        await self.request("DELETE", f"{where}/job-{number}")

    async def create_jobs(self, count: int, namespaces: int, first: int = 0, **spec: Any) -> dict[str, float]:
        """Create many FineTuneJobs, `IN_FLIGHT` at once; returns the times by name at which they were accepted."""
        return await accepted(
            range(first, first + count), lambda number: self.create_job(number, namespaces, **spec)
        )

    async def watch(
        self,
        path: str,
        see: Callable[[str, dict[str, Any], float], None],
        *,
        accept: str = "application/json",
    ) -> None:
        """Call `see` with type, object and time (time.monotonic) of each event, until canceled. `path` has a query."""
        version = (await self.request("GET", f"{path}&limit=1"))["metadata"]["resourceVersion"]
        query = "&watch=true&timeoutSeconds=3600&resourceVersion="
        async with self._session.get(
            self._url + path + query + version,
            headers={"Accept": accept},
            timeout=aiohttp.ClientTimeout(total=None),
        ) as response:
            async for line in response.content:
                event = json.loads(line)
                see(event["type"], event["object"], time.monotonic())


async def accepted(numbers: Iterable[int], create: Callable[[int], Awaitable[float]]) -> dict[str, float]:
    """Call `create` for each job, `IN_FLIGHT` at once; returns the times that it returns, by the job's name."""
    gate = asyncio.Semaphore(IN_FLIGHT)
    times: dict[str, float] = {}

    async def limited(number: int) -> None:
        async with gate:
            times[f"job-{number}"] = await create(number)

    await asyncio.gather(*(limited(number) for number in numbers))
    return times


class FirstJobs:
    """The times (time.monotonic) by the value of `label` at which the API server reports the first batch/v1 Job."""

    def __init__(self, label: str) -> None:
        self.seen: dict[str, float] = {}
        self._label = label

    @asynccontextmanager
    async def watched(self, load: Load) -> AsyncIterator[None]:
        """Watch for the duration of a `with` block."""
        path = f"{BATCH_JOBS}?labelSelector={self._label}"
        async with beside(load.watch(path, self._see, accept=METADATA)):
            yield

    def figures(self, times: Mapping[str, float], began: float) -> dict[str, float]:
        """The seconds of a burst: from the acceptance of each job, in `times`, to its Job, and from `began` to the last."""
        waits = [max(self.seen[name] - moment, 0.0) for name, moment in times.items()]
        return {
            "p50Seconds": round(quantile(waits, 0.5), 2),
            "p99Seconds": round(quantile(waits, 0.99), 2),
            "createSeconds": round(max(times.values()) - began, 2),
            "wholeSeconds": round(max(self.seen.values()) - began, 2),
        }

    def _see(self, kind: str, body: dict[str, Any], now: float) -> None:
        if kind == "ADDED":
            self.seen.setdefault(body["metadata"]["labels"][self._label], now)


def _credentials(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """The API server's URL, and the certificates of both sides."""
    config = json.loads(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(
        cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
    )
    with tempfile.NamedTemporaryFile() as chain:
        for part in ("client-certificate-data", "client-key-data"):
            chain.write(base64.b64decode(user[part]))
        chain.flush()
        context.load_cert_chain(chain.name)
    return cluster["server"], context


@asynccontextmanager
async def beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Run `work`, such as a watch, for the duration of a `with` block."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.5)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Wait until `holds` is true; raises TimeoutError with `what` was seen after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s: {what()}")
        await asyncio.sleep(0.2)


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
