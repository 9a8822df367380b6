"""Puts many FineTuneJobs into etcd at once, as the API server would store them.

Through the API server, each takes two requests. The first one goes that way, and shows the stored form.
"""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from typing import Any

import aiohttp
from finetune_operator.api.stages import WORK_STAGES

from benchmarks.scale.control_plane import ControlPlane
from benchmarks.scale.load import Load, job_body, namespace_of
from tests.support.world import World

PUTS = 40
"""Objects in one transaction of etcd, which must stay below 1.5 MB."""


def ended_status() -> dict[str, Any]:
    """The status of a job of three stages that has succeeded, by the operator's own decisions."""
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        world.succeed(stage)
    world.settle()
    return dict(world.job.status)


def new_status() -> dict[str, Any]:
    """The status of a job that its user has suspended before its first stage."""
    world = World()
    spec = {**world.job.spec, "suspend": True}
    object.__setattr__(world.job, "spec", spec)
    world.settle()
    return dict(world.job.status)


async def prefill(
    plane: ControlPlane, load: Load, count: int, namespaces: int, status: dict[str, Any], **spec: Any
) -> None:
    """Store `count` FineTuneJobs with this status."""
    await load.create_namespaces(namespaces)
    where = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace_of(0, namespaces)}/finetunejobs"
    await load.request("POST", where, job_body(0, **spec))
    await asyncio.to_thread(
        plane.client.request,
        "PATCH",
        f"{where}/job-0/status?fieldManager=finetune-operator&force=true",
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "job-0"},
            "status": status,
        },
        "application/apply-patch+yaml",
    )
    async with aiohttp.ClientSession(f"http://127.0.0.1:{plane.etcd_port}") as etcd:
        prefix = "/registry/finetune.dev/finetunejobs"
        first = await _get(etcd, f"{prefix}/{namespace_of(0, namespaces)}/job-0")
        for start in range(1, count, PUTS):
            numbers = range(start, min(start + PUTS, count))
            puts = [_put(prefix, first, number, namespaces) for number in numbers]
            async with etcd.post("/v3/kv/txn", json={"success": puts}) as response:
                assert response.status == 200, await response.text()
    # The API server would take in etcd's changes one by one, which can last minutes. A new one lists them.
    await asyncio.to_thread(plane.restart_api_server)


async def _get(etcd: aiohttp.ClientSession, key: str) -> str:
    async with etcd.post("/v3/kv/range", json={"key": _encoded(key)}) as response:
        found = await response.json()
    assert found.get("kvs"), f"etcd must hold {key}, found {found}"
    return base64.b64decode(found["kvs"][0]["value"]).decode()


def _put(prefix: str, first: str, number: int, namespaces: int) -> dict[str, Any]:
    body = json.loads(first.replace("job-0", f"job-{number}"))
    namespace = namespace_of(number, namespaces)
    body["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": namespace}
    key = f"{prefix}/{namespace}/job-{number}"
    return {"requestPut": {"key": _encoded(key), "value": _encoded(json.dumps(body))}}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
