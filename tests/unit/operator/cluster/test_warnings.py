from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from finetune_operator.api.stages import Stage
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.warnings import newest_warning, read_pod_warnings

from tests.support.api_server import failure, serving
from tests.support.world import started


def event(message: str, **times: Any) -> dict[str, Any]:
    return {"reason": "FailedMount", "message": message, **times}


def test_the_newest_event_counts_in_both_forms_of_events() -> None:
    assert newest_warning([]) == ""
    old = event("old", lastTimestamp="2026-11-24T09:00:00Z", eventTime=None)
    new = event("new", lastTimestamp=None, eventTime="2026-11-24T09:00:01.000000Z")
    repeated = event("again", series={"lastObservedTime": "2026-11-24T09:00:02.000000Z"})
    assert newest_warning([new, old]) == "FailedMount: new"
    assert newest_warning([repeated, new, old]) == "FailedMount: again"
    assert len(newest_warning([event("x" * 9999)])) == 512


async def test_only_pods_that_do_not_start_are_asked_about() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query["fieldSelector"])
        return web.json_response({"items": [event("no such volume")]})

    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    stuck = world.run_pod("demo-train-0", running=False, phase="Pending")
    async with serving(answer) as api:
        found = await read_pod_warnings(Cluster(api), world.observe())
    assert found == {stuck.uid: "FailedMount: no such volume"}
    assert asked == [f"involvedObject.uid={stuck.uid},type=Warning"]


async def test_without_permission_there_are_no_warnings(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: web.Request) -> web.Response:
        return failure(403, "cannot list events")

    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0", running=False, phase="Pending")
    async with serving(answer) as api:
        assert await read_pod_warnings(Cluster(api), world.observe()) == {}
    assert "cannot list events" in caplog.text
