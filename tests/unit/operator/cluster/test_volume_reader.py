"""Reads claims and volumes from an API server that knows a few paths."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiohttp import web
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.volume_reader import VolumeReader
from finetune_operator.observed.observation import Claim

from tests.support import api_server
from tests.support.operator import UID, make_job, make_spec
from tests.support.world import World

CLAIM = {
    "metadata": {"name": "demo-workspace", "uid": "claim"},
    "spec": {
        "accessModes": ["ReadWriteOnce"],
        "volumeName": "pv",
        "storageClassName": "zonal",
        "resources": {"requests": {"storage": "20Gi"}},
    },
    "status": {"phase": "Bound"},
}
CLASS = {"metadata": {"name": "zonal"}, "provisioner": "disk.example.com"}
VOLUME = {"metadata": {"name": "pv"}, "spec": {"capacity": {"storage": "20Gi"}}}
CLAIM_PATH = "/api/v1/namespaces/team/persistentvolumeclaims/demo-workspace"
CLASSES_PATH = "/apis/storage.k8s.io/v1/storageclasses"
VOLUME_PATH = "/api/v1/persistentvolumes/pv"


@asynccontextmanager
async def serving(
    known: dict[str, dict[str, Any]], missing: int
) -> AsyncIterator[tuple[VolumeReader, list[str]]]:
    """A reader and the paths that it has read. Unknown paths have the status `missing`."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path in known:
            return web.json_response(known[request.path])
        return web.json_response({"message": "no"}, status=missing)

    async with api_server.serving(answer) as api:
        yield VolumeReader(Cluster(api), time.monotonic), asked


def with_claim() -> World:
    return World(claim=Claim("demo-workspace", "claim", UID, "1", deleting=False))


async def test_a_bound_workspace_comes_with_its_volume_and_class() -> None:
    classes = {"metadata": {"resourceVersion": "1"}, "items": [CLASS]}
    async with serving({CLAIM_PATH: CLAIM, CLASSES_PATH: classes, VOLUME_PATH: VOLUME}, 404) as (
        reader,
        asked,
    ):
        found = await reader.read(with_claim().observe())
        assert found.workspace is not None
        assert (found.workspace.capacity, found.workspace.uid) == ("20Gi", "claim")
        assert found.workspace.volume is not None
        assert found.storage_class is not None
        await reader.read(with_claim().observe())
        assert asked.count(CLASSES_PATH) == 1, "classes are cached for a while"


async def test_the_claim_of_a_job_without_one_is_not_read() -> None:
    classes = {"metadata": {"resourceVersion": "1"}, "items": []}
    async with serving({CLASSES_PATH: classes}, 404) as (reader, asked):
        found = await reader.read(World().observe())
        assert found.workspace is None
        assert CLAIM_PATH not in asked


async def test_objects_that_may_not_be_read_count_as_missing() -> None:
    async with serving({CLAIM_PATH: CLAIM}, 403) as (reader, _):
        found = await reader.read(with_claim().observe())
        assert found.workspace is not None
        assert found.workspace.volume is None
        assert found.storage_class is None


async def test_a_model_cache_that_does_not_exist_is_no_error() -> None:
    classes = {"metadata": {"resourceVersion": "1"}, "items": []}
    job = make_job(make_spec(modelCache={"claimName": "cache"}))
    async with serving({CLASSES_PATH: classes}, 404) as (reader, _):
        found = await reader.read(replace(World().observe(), job=job))
        assert found.model_cache is None


def claim(name: str, *access_modes: str) -> dict[str, dict[str, Any]]:
    body = {"metadata": {"name": name, "uid": name}, "spec": {"accessModes": list(access_modes)}}
    return {f"/api/v1/namespaces/team/persistentvolumeclaims/{name}": body}


SOURCES = make_spec(
    model={"source": {"persistentVolumeClaim": {"claimName": "models"}}},
    dataset={
        "source": {"persistentVolumeClaim": {"claimName": "rows", "path": "a.jsonl"}},
        "validation": {"source": {"persistentVolumeClaim": {"claimName": "models", "path": "b.jsonl"}}},
    },
    modelCache={"claimName": "cache"},
)


async def test_claims_that_nobody_can_write_to_are_named() -> None:
    known = {
        **claim("models", "ReadOnlyMany"),
        **claim("rows", "ReadOnlyMany", "ReadWriteMany"),
        **claim("cache", "ReadOnlyMany"),
        CLASSES_PATH: {"metadata": {"resourceVersion": "1"}, "items": []},
    }
    async with serving(known, 404) as (reader, asked):
        found = await reader.read(replace(World().observe(), job=make_job(SOURCES)))
        assert found.read_only_claims == ("cache", "models")
        assert len(asked) == len(set(asked)), "each claim is read once"


async def test_only_prepare_needs_the_claims_of_the_sources() -> None:
    known = {
        **claim("cache", "ReadOnlyMany"),
        CLASSES_PATH: {"metadata": {"resourceVersion": "1"}, "items": []},
    }
    async with serving(known, 404) as (reader, asked):
        job = make_job(SOURCES, {"stage": {"name": "Train"}})
        found = await reader.read(replace(World().observe(), job=job))
        assert found.read_only_claims == ("cache",)
        assert not any(path.endswith(("/models", "/rows")) for path in asked)
