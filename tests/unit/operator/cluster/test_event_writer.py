"""Events on virtual time: they are written beside everything else, and nothing depends on them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.cluster.event_buffer import CAPACITY, EventBuffer
from finetune_operator.cluster.event_writer import BURST, FLUSH_SECONDS, MAXIMUM_TRIES, RATE, EventWriter
from finetune_operator.cluster.resources import events_path
from finetune_operator.observed.observation import JobRecord
from finetune_operator.status.events import Transition

from tests.support.api_server import ObjectServer, failure
from tests.support.operator import NOW, UID, make_job
from tests.support.virtual_time import VirtualApi, VirtualLoop, run_virtual, wall_clock

EVENTS = events_path("team")
TRAINING = Transition("Normal", "Training", "TRAIN is running")


class Outcomes(Counter[str]):
    """Counts what happens to the Events."""

    def events(self, outcome: str, number: int) -> None:
        self[outcome] += number


class Parts:
    """A writer of Events with the API server and the shared client."""

    def __init__(self, loop: VirtualLoop, capacity: int = CAPACITY) -> None:
        self.loop = loop
        self.server = ObjectServer()
        self.api = VirtualApi(self.server, loop)
        self.outcomes = Outcomes()
        self.gone: set[str] = set()
        """uids of FineTuneJobs that do not exist any more."""
        self.writer = EventWriter(
            self.api,
            "replica",
            self.outcomes,
            wall_clock(loop, NOW),
            loop.time,
            lambda _, uid: uid not in self.gone,
            EventBuffer(capacity),
        )
        self.running = asyncio.create_task(self.writer.run())

    def events(self) -> list[dict[str, Any]]:
        return [body for path, body in self.server.objects.items() if path.startswith(EVENTS)]

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait({self.running})
        await self.api.close()


def run(main: Callable[[Parts], Coroutine[Any, Any, None]], capacity: int = CAPACITY) -> None:
    """Run a coroutine with the parts on virtual time."""

    async def inner(loop: VirtualLoop) -> None:
        parts = Parts(loop, capacity)
        try:
            await main(parts)
        finally:
            await parts.stop()

    run_virtual(inner)


def job(number: int) -> JobRecord:
    return replace(make_job(), name=f"job-{number}", uid=str(number))


def test_an_event_names_its_job_and_its_time() -> None:
    async def main(parts: Parts) -> None:
        parts.writer.record(make_job(), TRAINING)
        await asyncio.sleep(1)
        (event,) = parts.events()
        assert event["involvedObject"]["uid"] == UID
        assert (event["reason"], event["type"], event["message"]) == (
            "Training",
            "Normal",
            "TRAIN is running",
        )
        assert event["firstTimestamp"] == event["lastTimestamp"]
        assert event["count"] == 1
        assert parts.outcomes == {"written": 1}

    run(main)


def test_repetitions_raise_the_count_of_one_event() -> None:
    async def main(parts: Parts) -> None:
        for _ in range(3):
            parts.writer.record(make_job(), TRAINING)
            parts.writer.record(make_job(), TRAINING)
            await asyncio.sleep(600)
        (event,) = parts.events()
        assert event["count"] == 6
        assert event["firstTimestamp"] < event["lastTimestamp"]
        assert Counter(method for method, _ in parts.server.requests) == {"POST": 1, "PATCH": 2}

    run(main)


def test_nothing_is_kept_of_an_event_that_is_written_after_its_job_is_gone() -> None:
    async def main(parts: Parts) -> None:
        for number in (1, 2):
            parts.writer.record(job(number), TRAINING)
        parts.gone.add("1")
        parts.writer.forget(job(1).key)
        await asyncio.sleep(1)
        assert len(parts.events()) == 2, "both are written"
        # Only the private list shows what is kept.
        assert len(parts.writer._written) == 1

    run(main)


def test_a_repetition_of_a_forgotten_event_is_a_new_event() -> None:
    async def main(parts: Parts) -> None:
        for number in (1, 2):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(1)
        parts.writer.forget(job(1).key)
        for number in (1, 2):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(1)
        assert Counter((event["involvedObject"]["name"], event["count"]) for event in parts.events()) == {
            ("job-1", 1): 2,
            ("job-2", 2): 1,
        }

    run(main)


@pytest.mark.parametrize("status", [403, 404])
def test_a_repetition_of_an_event_that_cannot_be_changed_is_a_new_event(status: int) -> None:
    """It has expired, or the role is that of an earlier chart."""

    async def main(parts: Parts) -> None:
        parts.writer.record(make_job(), TRAINING)
        await asyncio.sleep(1)
        (path,) = parts.server.objects
        parts.server.failures["PATCH", path] = status
        parts.writer.record(make_job(), TRAINING)
        await asyncio.sleep(1)
        assert [event["count"] for event in parts.events()] == [1, 1]

    run(main)


@pytest.mark.parametrize("status", [409, 410, 429, 500, 503])
def test_a_count_that_the_api_server_does_not_take_now_is_raised_later(status: int) -> None:
    async def main(parts: Parts) -> None:
        parts.writer.record(make_job(), TRAINING)
        await asyncio.sleep(1)
        (path,) = parts.server.objects
        parts.server.failures["PATCH", path] = status
        parts.writer.record(make_job(), TRAINING)
        await asyncio.sleep(5)
        parts.server.failures.clear()
        await asyncio.sleep(600)
        assert [each["count"] for each in parts.events()] == [2]
        assert parts.outcomes == {"written": 2}

    run(main)


def test_events_pass_at_their_own_rate_and_take_no_token_of_others() -> None:
    async def main(parts: Parts) -> None:
        for number in range(BURST + 200):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(5)
        assert len(parts.events()) == pytest.approx(BURST + 5 * RATE, abs=25)
        begin = parts.loop.time()
        for _ in range(80):
            await parts.api.call("GET", "/apis/finetune.dev/v1alpha1/finetunejobs")
        assert parts.loop.time() - begin < 80 * 0.006, "the shared burst is untouched"

    run(main)


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_an_api_server_that_takes_no_events_delays_nothing_else(status: int) -> None:
    """Its database of Events is down, or it limits their rate."""

    async def main(parts: Parts) -> None:
        parts.server.failures["POST", EVENTS] = status
        for number in range(50):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(30)
        assert not parts.api.outage.ongoing
        begin = parts.loop.time()
        for _ in range(50):
            await parts.api.call("GET", "/apis/finetune.dev/v1alpha1/finetunejobs")
        assert parts.loop.time() - begin < 1
        tries = sum(path == EVENTS for _, path in parts.server.requests)
        assert tries <= 8, "failures are tried again at growing pauses"
        parts.server.failures.clear()
        await asyncio.sleep(60)
        assert len(parts.events()) == 50

    run(main)


def test_what_the_api_server_does_not_take_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main(parts: Parts) -> None:
        parts.server.failures["POST", EVENTS] = 403
        for number in range(20):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(5)
        assert parts.outcomes == {"dropped": 20}
        assert len([record for record in caplog.records if "Events are lost" in record.message]) == 1
        parts.server.failures["POST", EVENTS] = 500
        parts.writer.record(job(99), TRAINING)
        await asyncio.sleep(600)
        assert parts.outcomes == {"dropped": 21}
        assert sum(path == EVENTS for _, path in parts.server.requests) == 20 + MAXIMUM_TRIES

    run(main)


def test_more_events_than_can_wait_are_dropped_and_counted() -> None:
    async def main(parts: Parts) -> None:
        for number in range(25):
            parts.writer.record(job(number), TRAINING)
        assert parts.outcomes == {"dropped": 15}
        await asyncio.sleep(5)
        assert parts.outcomes == {"dropped": 15, "written": 10}

    run(main, capacity=10)


@pytest.mark.parametrize("before", [0.0, 0.003, 0.02, 10.0])
def test_a_stopping_process_waits_for_no_api_server_that_takes_no_events(before: float) -> None:
    async def main(parts: Parts) -> None:
        parts.server.failures["POST", EVENTS] = 503
        for number in range(500):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(before)
        begin = parts.loop.time()
        await parts.stop()
        assert parts.loop.time() - begin < 0.1
        assert parts.outcomes == {"dropped": 500}

    run(main)


@pytest.mark.parametrize("before", [0.0, 0.003, 0.02, 1.0])
def test_a_stopping_process_writes_the_events_that_wait(before: float) -> None:
    """Also the one whose request is on its way, and without the rate of other times."""

    async def main(parts: Parts) -> None:
        parts.server.failures["POST", events_path("closed")] = 403
        for number in range(BURST + 50):
            parts.writer.record(job(number), TRAINING)
        parts.writer.record(replace(job(999), namespace="closed"), TRAINING)
        await asyncio.sleep(before)
        await parts.stop()
        assert parts.outcomes == {"written": BURST + 50, "dropped": 1}
        assert len(parts.events()) == BURST + 50

    run(main)


def test_what_a_stopping_process_cannot_write_in_time_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main(parts: Parts) -> None:
        for number in range(2000):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(0.5)
        begin = parts.loop.time()
        await parts.stop()
        assert parts.loop.time() - begin == pytest.approx(FLUSH_SECONDS, abs=0.05)
        assert parts.outcomes.total() == 2000
        assert parts.outcomes["written"] <= len(parts.events()) <= parts.outcomes["written"] + 1
        assert any(f"{parts.outcomes['dropped']} Events are lost" in line.message for line in caplog.records)

    run(main)


def test_an_api_server_that_does_not_answer_delays_the_end_for_a_bounded_time() -> None:
    async def main(parts: Parts) -> None:
        async def never(*_: object, **__: object) -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError("nobody answers")

        parts.api.call = never  # type: ignore[method-assign]  # a connection that hangs
        for number in range(3):
            parts.writer.record(job(number), TRAINING)
        await asyncio.sleep(1)
        begin = parts.loop.time()
        await parts.stop()
        assert parts.loop.time() - begin == pytest.approx(FLUSH_SECONDS, abs=0.05)
        assert parts.outcomes == {"dropped": 3}

    run(main)


def test_an_event_whose_answer_was_lost_is_written_once() -> None:
    async def main(parts: Parts) -> None:
        respond = parts.server.respond
        lost = iter([True])

        def losing(method: str, path: str, query: Mapping[str, str], body: dict[str, Any]) -> web.Response:
            answer = respond(method, path, query, body)
            return failure(504) if next(lost, False) else answer

        parts.server.respond = losing  # type: ignore[method-assign]  # loses the first answer
        parts.writer.record(make_job(), TRAINING)
        await asyncio.sleep(30)
        assert [event["count"] for event in parts.events()] == [1]
        assert parts.outcomes == {"written": 1}

    run(main)
