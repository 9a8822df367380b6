from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_operator.cluster.event_buffer import EventBuffer
from finetune_operator.observed.observation import JobRecord
from finetune_operator.status.events import Transition

from tests.support.operator import NOW, make_job

TRAINING = Transition("Normal", "Training", "TRAIN is running")


def job(name: str = "demo", namespace: str = "team", uid: str = "1") -> JobRecord:
    return replace(make_job(), name=name, namespace=namespace, uid=uid)


def drain(buffer: EventBuffer) -> list[tuple[str, str]]:
    """Namespace and name of each Event, in the order of the turns."""
    found = []
    while (event := buffer.take()) is not None:
        found.append((event.key.namespace, event.key.name))
    return found


def test_equal_events_of_one_job_are_counted() -> None:
    buffer = EventBuffer()
    for minutes in (0, 1, 2):
        assert buffer.add(job(), TRAINING, NOW + timedelta(minutes=minutes)) == 0
    buffer.add(job(), replace(TRAINING, message="another"), NOW)
    buffer.add(job(uid="2"), TRAINING, NOW)
    assert len(buffer) == 3
    event = buffer.take()
    assert event is not None
    assert (event.count, event.first, event.last) == (3, NOW, NOW + timedelta(minutes=2))


def test_namespaces_take_turns() -> None:
    buffer = EventBuffer()
    for name in ("1", "2", "3"):
        buffer.add(job(name, "a"), TRAINING, NOW)
    buffer.add(job("4", "b"), TRAINING, NOW)
    assert drain(buffer) == [("a", "1"), ("b", "4"), ("a", "2"), ("a", "3")]


def test_a_full_buffer_drops_the_oldest_event_of_the_busiest_namespace() -> None:
    buffer = EventBuffer(capacity=3)
    assert sum(buffer.add(job(str(number), "a"), TRAINING, NOW) for number in range(5)) == 2
    assert buffer.add(job("b", "b"), TRAINING, NOW) == 1
    assert len(buffer) == 3
    assert drain(buffer) == [("a", "3"), ("b", "b"), ("a", "4")]
    assert len(buffer) == 0


def test_an_event_that_is_put_back_joins_its_repetition() -> None:
    buffer = EventBuffer()
    buffer.add(job(), TRAINING, NOW)
    event = buffer.take()
    assert event is not None
    buffer.add(job(), TRAINING, NOW + timedelta(minutes=1))
    buffer.put(replace(event, tries=2))
    joined = buffer.take()
    assert joined is not None
    assert (joined.count, joined.first, joined.tries) == (2, NOW, 2)
