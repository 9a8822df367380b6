from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.cluster.resources import Cluster
from finetune_operator.errors import ApiError
from finetune_operator.observed.observation import Observation
from finetune_operator.runtime.rehearsals import Rehearsals

from tests.support.api_server import ObjectServer, failure, serving
from tests.support.operator import NOW, SETTINGS, make_inventory, make_job, make_spec

OWN = make_spec(podTemplate={"labels": {"team": "a"}})


class Checking(ObjectServer):
    """Answers dry runs, with a failure for one object."""

    def __init__(self, name: str = "", status: int = 422, message: str = "is invalid") -> None:
        super().__init__()
        self.name, self.status, self.message = name, status, message
        self.checked: list[str] = []

    def respond(self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any]) -> web.Response:
        assert (method, query["dryRun"], path.rpartition("/")[2] in {"jobs", "persistentvolumeclaims"}) == (
            "POST",
            "All",
            True,
        )
        name = body["metadata"]["name"]
        self.checked.append(name)
        return failure(self.status, self.message) if name == self.name else web.json_response(body)


def new(spec: dict[str, Any] = OWN, **changes: Any) -> Observation:
    return Observation(job=make_job(spec=spec, **changes), inventory=make_inventory())


async def test_all_objects_of_a_new_job_are_checked_once_for_equal_settings() -> None:
    server = Checking()
    async with serving(server) as api:
        rehearsals = Rehearsals(Cluster(api), SETTINGS, lambda: NOW)
        assert await rehearsals.refusal(new()) is None
        assert sorted(server.checked) == ["demo-merge-0", "demo-prepare-0", "demo-train-0", "demo-workspace"]
        assert await rehearsals.refusal(new()) is None
        assert len(server.checked) == 4
        other = new()
        await rehearsals.refusal(replace(other, job=replace(other.job, namespace="elsewhere")))
        assert len(server.checked) == 8, "another namespace has other policies"
    assert server.objects == {}


async def test_a_job_with_default_settings_and_one_that_has_begun_are_not_checked() -> None:
    server = Checking()
    async with serving(server) as api:
        rehearsals = Rehearsals(Cluster(api), SETTINGS, lambda: NOW)
        await rehearsals.refusal(new(make_spec()))
        for status in (
            {"stage": {"name": "Prepare", "attempt": 0, "startTime": "2026-11-24T09:00:00Z"}},
            {"stage": {"name": "Train", "attempt": 0}},
            {"completionTime": "2026-11-24T09:00:00Z"},
        ):
            observation = new()
            await rehearsals.refusal(replace(observation, job=replace(observation.job, status=status)))
    assert server.checked == []


async def test_an_object_of_a_later_stage_that_is_invalid_is_found_before_the_first() -> None:
    async with serving(Checking("demo-merge-0")) as api:
        rehearsals = Rehearsals(Cluster(api), SETTINGS, lambda: NOW)
        found = await rehearsals.refusal(new())
        assert found is not None
        assert found.startswith("the API server rejected Job demo-merge-0: is invalid")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "exceeded quota: q"),
        (422, "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"),
        (400, 'admission webhook "w" does not support dry run'),
        (500, 'failed calling webhook "w": connection refused'),
    ],
)
async def test_what_may_change_until_the_object_is_created_is_no_refusal(status: int, message: str) -> None:
    async with serving(Checking("demo-prepare-0", status, message)) as api:
        rehearsals = Rehearsals(Cluster(api), SETTINGS, lambda: NOW)
        assert await rehearsals.refusal(new()) is None


async def test_without_an_answer_the_objects_are_checked_again() -> None:
    server = Checking("demo-workspace", 503)
    async with serving(server) as api:
        rehearsals = Rehearsals(Cluster(api), SETTINGS, lambda: NOW)
        with pytest.raises(ApiError):
            await rehearsals.refusal(new())
        server.name = ""
        assert await rehearsals.refusal(new()) is None
        assert len(server.checked) == 8


async def test_jobs_that_come_at_once_with_equal_settings_are_checked_once() -> None:
    server = Checking("demo-train-0")
    async with serving(server) as api:
        rehearsals = Rehearsals(Cluster(api), SETTINGS, lambda: NOW)
        found = await asyncio.gather(*(rehearsals.refusal(new()) for _ in range(20)))
    assert len(server.checked) == 4
    assert len(set(found)) == 1
    assert found[0] is not None


async def test_if_the_server_does_not_answer_the_next_job_asks_again() -> None:
    server = Checking("demo-workspace", 503)
    async with serving(server) as api:
        rehearsals = Rehearsals(Cluster(api), SETTINGS, lambda: NOW)
        found = await asyncio.gather(*(rehearsals.refusal(new()) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in found] == [ApiError] * 3
        server.name = ""
        assert await rehearsals.refusal(new()) is None
