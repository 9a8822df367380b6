from __future__ import annotations

import pytest
from finetune_operator.cluster.event_buffer import EventKey
from finetune_operator.cluster.written_events import WrittenEvents
from finetune_operator.status.events import Transition


def key(job: str, message: str = "TRAIN is running", uid: str = "uid") -> EventKey:
    return EventKey("team", job, uid, Transition("Normal", "Training", message))


def test_an_event_is_known_with_its_last_count() -> None:
    written = WrittenEvents()
    assert written.get(key("a")) is None
    written.put(key("a"), "a.1", 1)
    written.put(key("a"), "a.1", 3)
    assert written.get(key("a")) == ("a.1", 3)
    assert written.get(key("a", uid="of the next job of this name")) is None
    assert len(written) == 1


def test_nothing_is_left_of_a_deleted_job() -> None:
    written = WrittenEvents()
    for message in ("one", "two"):
        written.put(key("a", message), message, 1)
    written.put(key("b"), "b.1", 1)
    written.forget(("team", "a"))
    written.forget(("team", "never seen"))
    assert len(written) == 1
    assert written.get(key("a", "one")) is None
    assert written.get(key("b")) == ("b.1", 1)


def test_the_job_without_events_for_the_longest_time_makes_room() -> None:
    written = WrittenEvents(maximum=3)
    for job, message in (("a", "one"), ("b", "one"), ("a", "two"), ("c", "one")):
        written.put(key(job, message), job, 1)
    assert written.get(key("b", "one")) is None
    assert len(written) == 3
    assert written.get(key("a", "one")) == ("a", 1)


def test_one_job_with_ever_new_events_forgets_its_own_oldest_one() -> None:
    written = WrittenEvents(maximum=2)
    for message in ("one", "two", "one", "three"):
        written.put(key("a", message), message, 1)
    assert len(written) == 2
    assert written.get(key("a", "two")) is None
    assert written.get(key("a", "one")) == ("one", 1)


@pytest.mark.parametrize("known", [True, False])
def test_an_event_that_has_expired_can_be_removed(*, known: bool) -> None:
    written = WrittenEvents()
    written.put(key("a", "another one"), "a.1", 1)
    if known:
        written.put(key("a"), "a.2", 1)
    written.remove(key("a"))
    assert written.get(key("a")) is None
    assert len(written) == 1
