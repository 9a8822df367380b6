"""Sends resources in waves, waits until each is settled, and takes every wave away again."""

from __future__ import annotations

import asyncio
import io
import json
import random
import ssl
import tempfile
import time
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.support.e2e.audit_log import read_requests
from tests.support.e2e.control_plane import ControlPlane, cpu_seconds, resident_bytes
from tests.support.fuzz import texts
from tests.support.fuzz.encoding import Raw, encode
from tests.support.fuzz.judge import Verdict, judge_answer, judge_job
from tests.support.fuzz.operator_run import OperatorRun
from tests.support.fuzz.subjects import Resource

NAMESPACE = "fuzz"
JOBS = f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"
_CHILDREN = {
    "Jobs": f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs",
    "pods": f"/api/v1/namespaces/{NAMESPACE}/pods",
    "claims": f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims",
}
_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_SENDERS = 16
_TIMEOUT, _CONFLICT = 504, 409
_TRIES = 5
"""Of a request that the API server does not finish in time, as on a machine without free CPUs."""
_MOST_HEADERS = 5000
"""The API server sends a header for each unknown or repeated field, and bounds only their 4,096 characters."""
_EDITED = 5
_FIELDS = (
    "deadlineSeconds",
    "noProgressSeconds",
    "retries",
    "keepChildrenSeconds",
    "keepWorkspace",
    "unheardOf",
)
_EDITS: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda rng: {"lifecycle": {rng.choice(_FIELDS): rng.choice(texts.NUMBERS)}},
    lambda rng: {"lifecycle": {"keepChildrenSeconds": {"failure": rng.choice(texts.NUMBERS)}}},
    lambda rng: {
        "lifecycle": rng.choice([None, {}, [], {"deadlineSeconds": 1}, {"deadlineSeconds": 2**31 - 1}])
    },
    lambda rng: {"suspend": rng.choice([True, False, None, "true", 1, Raw("1e0")])},
    lambda rng: {
        rng.choice(["model", "dataset", "training", "podTemplate", "queueName"]): rng.choice([None, {}, "a"])
    },
)
SETTLE_SECONDS = 120.0
LEAVE_SECONDS = 120.0


@dataclass(frozen=True)
class Finding:
    """A resource with which something is wrong."""

    resource: Resource
    outcome: str
    problem: str

    def __str__(self) -> str:
        place = f"seed {self.resource.seed}, {self.resource.kind} at {self.resource.place}"
        return f"{place}: {self.outcome}: {self.problem}"


@dataclass
class Report:
    """What became of all resources, and what it cost."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    """Memory of the operator after each wave, in bytes."""
    idle_cpu: list[tuple[float, float]] = field(default_factory=list)
    """CPU time per second of the operator and of the API server while a settled wave stands."""
    seconds: float = 0.0

    def add(self, resource: Resource, verdict: Verdict) -> None:
        """Count one verdict."""
        self.outcomes[verdict.outcome] += 1
        self.kinds.setdefault(resource.kind, Counter())[verdict.outcome.split(":")[0]] += 1
        if verdict.problem:
            self.findings.append(Finding(resource, verdict.outcome, verdict.problem))

    def table(self) -> str:
        """Return the numbers as text."""
        lines = [f"{number:6} {outcome}" for outcome, number in self.outcomes.most_common()]
        lines.append("by kind of hostility:")
        for kind, counts in sorted(self.kinds.items()):
            shares = ", ".join(f"{outcome} {number}" for outcome, number in counts.most_common())
            lines.append(f"{kind:>14} {sum(counts.values()):5}: {shares}")
        return "\n".join(lines)


class Campaign:
    """One run against a control plane with a running operator."""

    def __init__(
        self, session: aiohttp.ClientSession, server: str, plane: ControlPlane, run: OperatorRun
    ) -> None:
        self._session = session
        self._server = server
        self._plane = plane
        self._run = run
        self._names: set[str] = set()
        self.report = Report()

    async def wave(self, resources: Sequence[Resource], *, idle_seconds: float = 0.0) -> None:
        """Send resources at once, wait until all are settled, and delete them."""
        began = time.monotonic()
        self._names |= {resource.name for resource in resources}
        slots = asyncio.Semaphore(_SENDERS)
        answers = await asyncio.gather(*(self._send(resource, slots) for resource in resources))
        accepted = []
        for resource, (status, body) in zip(resources, answers, strict=True):
            verdict = judge_answer(status, body)
            if verdict is None:
                accepted.append(resource)
            else:
                self.report.add(resource, verdict)
        await self._settle(accepted)
        await self._edit(accepted)
        if idle_seconds:
            await self._watch_idle(idle_seconds)
        await self._take_away({each.name for each in resources if b'"orphan"' in each.body})
        self.report.resident.append(resident_bytes(self._run.process.pid))
        self.report.seconds += time.monotonic() - began

    async def _send(self, resource: Resource, slots: asyncio.Semaphore) -> tuple[int, bytes]:
        async with slots:
            headers = {"Content-Type": _JSON}
            status, text, tries = _TIMEOUT, b"", 0
            while status == _TIMEOUT and tries < _TRIES:
                tries += 1
                async with self._session.post(
                    self._server + JOBS,
                    # aiohttp warns about large bytes.
                    data=io.BytesIO(resource.body),
                    params=resource.query,
                    headers=headers,
                ) as answer:
                    status, text = answer.status, await answer.read()
            # A create that was not answered in time may have happened.
            return (201 if tries > 1 and status == _CONFLICT else status), text

    async def _edit(self, accepted: Sequence[Resource]) -> None:
        """Change what may be changed of every fifth resource, to odd values."""
        for resource in accepted[::_EDITED]:
            rng = random.Random(resource.seed)  # noqa: S311 -- reproducible, not secret
            body = encode({"spec": rng.choice(_EDITS)(rng)}).encode("ascii")
            headers = {"Content-Type": "application/merge-patch+json"}
            path = f"{self._server}{JOBS}/{quote(resource.name)}"
            async with self._session.patch(path, data=body, headers=headers) as answer:
                text = await answer.read()
            # A job whose owner does not exist may be collected by now.
            verdict = (
                Verdict("edit accepted") if answer.status in {200, 404} else judge_answer(answer.status, text)
            )
            self.report.add(
                replace(resource, kind="edit", place=body.decode("ascii")[:200]), verdict or Verdict("edit")
            )

    async def _settle(self, accepted: Sequence[Resource]) -> None:
        """Judge each accepted resource as soon as the operator has settled it."""
        open_resources = {resource.name: resource for resource in accepted}
        deadline = time.monotonic() + SETTLE_SECONDS
        while open_resources:
            jobs = {each["metadata"]["name"]: each for each in await self._list(JOBS)}
            children = frozenset(
                each["metadata"]["name"] for each in await self._list(_CHILDREN["Jobs"], _METADATA)
            )
            late = time.monotonic() > deadline
            for name, resource in list(open_resources.items()):
                verdict = self._verdict(resource, jobs.get(name), children, late=late)
                if verdict is not None:
                    self.report.add(resource, verdict)
                    del open_resources[name]
            await asyncio.sleep(0.5)

    @staticmethod
    def _verdict(
        resource: Resource, job: dict[str, Any] | None, children: frozenset[str], *, late: bool
    ) -> Verdict | None:
        if job is None:
            # The garbage collector takes a job away whose owner does not exist.
            collected = b'"ownerReferences"' in resource.body
            return Verdict("collected", "" if collected else "must exist until somebody deletes it")
        verdict = judge_job(job, children)
        if verdict is None and late:
            status = json.dumps(job.get("status"))[:1500]
            return Verdict(
                "unsettled", f"must be settled within {SETTLE_SECONDS:.0f} s, its status is {status}"
            )
        return verdict

    async def _watch_idle(self, seconds: float) -> None:
        processes = (self._run.process.pid, self._plane.api_server.pid)
        # The last status writes are still on their way.
        await asyncio.sleep(2)
        before = [cpu_seconds(pid) for pid in processes]
        await asyncio.sleep(seconds)
        used = [(cpu_seconds(pid) - start) / seconds for pid, start in zip(processes, before, strict=True)]
        self.report.idle_cpu.append((used[0], used[1]))

    async def _take_away(self, orphaned: set[str]) -> None:
        """Delete all jobs, and require that nothing of them is left, except what their users want to be `orphaned`."""
        await self._request("DELETE", JOBS)
        deadline = time.monotonic() + LEAVE_SECONDS
        while True:
            jobs = await self._list(JOBS, _METADATA)
            for job in jobs:
                await self._release(job["metadata"])
            left = {
                kind: [each["metadata"]["name"] for each in await self._list(path, _METADATA)]
                for kind, path in _CHILDREN.items()
            }
            if not jobs and all(_of(orphaned, names) for names in left.values()):
                break
            if time.monotonic() > deadline:
                names = [job["metadata"]["name"] for job in jobs]
                raise AssertionError(f"nothing may be left after a deletion, found {names} and {left}")
            await asyncio.sleep(0.5)
        for path in _CHILDREN.values():
            await self._request("DELETE", f"{path}?propagationPolicy=Background")

    async def _release(self, metadata: dict[str, Any]) -> None:
        """Remove a finalizer that nobody else removes."""
        if "example.com/hold" in (metadata.get("finalizers") or []):
            await self._request(
                "PATCH", f"{JOBS}/{quote(metadata['name'])}", json.dumps({"metadata": {"finalizers": None}})
            )

    async def _list(self, path: str, accept: str = _JSON) -> list[dict[str, Any]]:
        for _ in range(_TRIES):
            async with self._session.get(self._server + path, headers={"Accept": accept}) as answer:
                if answer.status != _TIMEOUT:
                    # Metadata of an empty list is null.
                    found: list[dict[str, Any]] = (await answer.json())["items"] or []
                    return found
            await asyncio.sleep(1)
        raise AssertionError(f"the API server must answer a GET of {path}, found {_TRIES} timeouts")

    async def _request(self, method: str, path: str, data: str = "") -> None:
        headers = {"Content-Type": "application/merge-patch+json"} if data else {}
        async with self._session.request(
            method, self._server + path, data=data or None, headers=headers
        ) as answer:
            await answer.read()

    def requests_by_job(self) -> Counter[str]:
        """Return how many requests of the operator named each job or one of its children."""
        found: Counter[str] = Counter()
        for request in read_requests(self._plane.audit_log):
            name = request.name.removesuffix("-workspace")
            if request.resource == "jobs" and name.count("-") >= 2:
                name = name.rsplit("-", 2)[0]
            # Claims that jobs share are read for each of them.
            if name in self._names:
                found[name] += 1
        return found


def _of(owners: set[str], names: list[str]) -> bool:
    """True if every name is that of a child of one of the owners."""
    return all(any(name.startswith(f"{owner}-") for owner in owners) for name in names)


@asynccontextmanager
async def campaign(plane: ControlPlane, run: OperatorRun) -> AsyncIterator[Campaign]:
    """A campaign with the administrator's connection, for the duration of a `with` block."""
    config = json.loads(plane.admin.read_text())
    server = config["clusters"][0]["cluster"]
    connector = aiohttp.TCPConnector(ssl=_context(server, config["users"][0]["user"]), limit=2 * _SENDERS)
    async with aiohttp.ClientSession(connector=connector, max_headers=_MOST_HEADERS) as session:
        yield Campaign(session, server["server"], plane, run)


def _context(server: dict[str, str], user: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=b64decode(server["certificate-authority-data"]).decode())
    # ssl reads certificates only from files.
    with tempfile.TemporaryDirectory() as folder:
        chain = Path(folder) / "client.pem"
        chain.write_bytes(b"".join(b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
        context.load_cert_chain(chain)
    return context
