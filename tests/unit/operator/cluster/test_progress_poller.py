from __future__ import annotations

from dataclasses import replace

import pytest
from aiohttp import web
from finetune_operator.api.stages import Stage
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.cluster.progress_poller import HttpFetcher, ProgressPoller
from finetune_operator.cluster.store import Store
from finetune_operator.observed.observation import Key

from tests.support.operator import make_job, make_progress
from tests.support.world import World

KEY = ("team", "demo")
GOOD = make_progress(Stage.PREPARE).model_dump_json(by_alias=True).encode()
OTHER = make_progress(Stage.PREPARE, uid="another").model_dump_json(by_alias=True).encode()


class Ports:
    """The response of each port, and the ports that were asked."""

    def __init__(self, answers: dict[int, bytes]) -> None:
        self.answers = answers
        self.asked: list[int] = []

    async def __call__(self, ip: str, port: int) -> bytes | None:
        assert ip == "10.0.0.1"
        self.asked.append(port)
        return self.answers.get(port)


def make_poller(ports: Ports) -> tuple[ProgressPoller, Store, list[Key]]:
    world = World()
    world.settle()
    pod = world.run_pod("demo-prepare-0")
    store = Store(GpuStore((), allow_time_slicing=False))
    store.put_job(make_job())
    store.put_child(KEY, world.children["demo-prepare-0"])
    store.put_pod(KEY, pod)
    woken: list[Key] = []
    return ProgressPoller(store, woken.append, ports, 9500, 5), store, woken


async def test_a_trainers_port_is_found_after_others_and_used_again() -> None:
    ports = Ports({9500: OTHER, 9501: b"not json", 9503: GOOD})
    poller, store, woken = make_poller(ports)
    await poller.poll()
    assert ports.asked == [9500, 9501, 9502, 9503]
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.progress is not None
    assert observation.progress.step == 5
    assert woken == [KEY]
    await poller.poll()
    assert ports.asked[4:] == [9503]
    assert woken == [KEY], "nothing new queues no job"


async def test_a_trainer_that_changed_its_port_is_found_again() -> None:
    ports = Ports({9503: GOOD})
    poller, _, _ = make_poller(ports)
    await poller.poll()
    ports.answers = {9501: GOOD}
    ports.asked.clear()
    await poller.poll()
    assert ports.asked == [9503]
    await poller.poll()
    assert ports.asked == [9503, 9500, 9501]


async def test_a_trainer_that_nobody_can_reach_is_no_failure() -> None:
    ports = Ports({})
    poller, store, woken = make_poller(ports)
    await poller.poll()
    observation = store.observe(KEY)
    assert observation is not None
    assert observation.progress is None
    assert woken == []


async def test_pods_of_an_earlier_job_of_the_same_name_are_not_polled() -> None:
    ports = Ports({9500: GOOD})
    poller, store, _ = make_poller(ports)
    store.put_job(replace(make_job(), uid="new", resource_version="999"))
    await poller.poll()
    assert ports.asked == []


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (web.Response(body=GOOD), GOOD),
        (web.Response(status=302, headers={"Location": "/progress?again"}), None),
        (web.Response(body=b" " * 100_000), None),
        (web.Response(status=500, body=GOOD), None),
    ],
    ids=["good", "redirect", "large", "error"],
)
async def test_only_a_plain_and_bounded_response_is_accepted(
    answer: web.Response, body: bytes | None
) -> None:
    asked: list[str] = []

    async def progress(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        return answer

    application = web.Application()
    application.router.add_get("/progress", progress)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fetcher = HttpFetcher()
    try:
        assert await fetcher("127.0.0.1", runner.addresses[0][1]) == body
        assert asked == [""]
        assert await fetcher("127.0.0.1", 1) is None, "no server listens there"
    finally:
        await fetcher.close()
        await runner.cleanup()
