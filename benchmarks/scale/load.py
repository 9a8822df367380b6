"""FineTuneJobs as a load: creates them at once, and notes when the API server reports what becomes of them."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
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
        gate = asyncio.Semaphore(IN_FLIGHT)
        accepted: dict[str, float] = {}

        async def create(number: int) -> None:
            async with gate:
                accepted[f"job-{number}"] = await self.create_job(number, namespaces, **spec)

        await asyncio.gather(*(create(number) for number in range(first, first + count)))
        return accepted

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
