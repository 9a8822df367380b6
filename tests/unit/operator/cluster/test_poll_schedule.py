from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from finetune_operator.cluster.poll_schedule import (
    FIRST_DELAY,
    LONGEST_DELAY,
    NAMESPACE_SLOTS,
    PROVEN_SLOTS,
    QUICK_TRIES,
    SLOTS,
    Outcome,
    PollSchedule,
    Target,
)

from tests.support.clock import Clock

PERIOD = 5.0


def make_schedule() -> tuple[PollSchedule, Clock]:
    clock = Clock()
    return PollSchedule(PERIOD, clock, lambda: 0.5), clock


def pods(namespace: str, count: int, version: str = "1") -> list[Target]:
    return [Target(f"{namespace}-{number}", namespace, version) for number in range(count)]


def take_all(schedule: PollSchedule) -> list[str]:
    found = []
    while (uid := schedule.take()) is not None:
        found.append(uid)
    return found


def rounds(
    schedule: PollSchedule, clock: Clock, targets: list[Target], outcome: Outcome, count: int
) -> list[float]:
    """The times of the rounds, of `count`, in which the first pod was asked."""
    times = []
    for _ in range(count):
        schedule.begin_round(targets)
        for uid in take_all(schedule):
            if uid == targets[0].uid:
                times.append(clock.now)
            schedule.finish(uid, outcome)
        clock.now += PERIOD
    return times


def test_a_trainer_that_answers_is_asked_once_in_every_round() -> None:
    schedule, clock = make_schedule()
    start = clock.now
    times = rounds(schedule, clock, pods("a", 1), Outcome.ANSWERED, 5)
    assert times == [start + PERIOD * number for number in range(5)]


def test_a_silent_pod_costs_one_poll_and_then_rare_ones() -> None:
    schedule, clock = make_schedule()
    times = rounds(schedule, clock, pods("a", 1), Outcome.SILENT, 2000)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_DELAY
    assert len(times) < 25, "in 2.8 hours"


def test_a_pod_that_refuses_is_asked_often_only_while_its_trainer_may_start() -> None:
    schedule, clock = make_schedule()
    times = rounds(schedule, clock, pods("a", 1), Outcome.CLOSED, 500)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[:QUICK_TRIES] == [PERIOD] * QUICK_TRIES
    assert gaps[QUICK_TRIES] == FIRST_DELAY
    assert gaps[-1] == LONGEST_DELAY


@pytest.mark.parametrize("changed", [True, False])
def test_a_pod_that_changes_is_asked_again_at_once(*, changed: bool) -> None:
    schedule, clock = make_schedule()
    rounds(schedule, clock, pods("a", 1), Outcome.SILENT, 40)
    schedule.begin_round(pods("a", 1, "2" if changed else "1"))
    assert take_all(schedule) == (["a-0"] if changed else [])


def test_an_answer_ends_the_delays() -> None:
    schedule, clock = make_schedule()
    rounds(schedule, clock, pods("a", 1), Outcome.SILENT, 30)
    clock.now += 2 * LONGEST_DELAY
    assert len(rounds(schedule, clock, pods("a", 1), Outcome.ANSWERED, 4)) == 4


def test_delays_have_jitter() -> None:
    draws = iter([0.0, 1.0])
    clock = Clock()
    schedule = PollSchedule(PERIOD, clock, lambda: next(draws))
    schedule.begin_round(pods("a", 2))
    for uid in take_all(schedule):
        schedule.finish(uid, Outcome.SILENT)
    clock.now += FIRST_DELAY * 0.75
    schedule.begin_round(pods("a", 2))
    assert take_all(schedule) == ["a-0"]


def test_namespaces_take_turns_and_use_a_part_of_the_slots() -> None:
    schedule, _ = make_schedule()
    schedule.begin_round([*pods("large", 1000), *pods("small", 2), *pods("single", 1)])
    found = take_all(schedule)
    assert Counter(uid.partition("-")[0] for uid in found) == {
        "large": NAMESPACE_SLOTS,
        "small": 2,
        "single": 1,
    }
    assert set(found[:3]) == {"large-0", "small-0", "single-0"}
    schedule.finish("large-0", Outcome.SILENT)
    assert take_all(schedule) == ["large-16"]


def test_pods_that_hang_never_take_the_slots_of_those_that_answer() -> None:
    schedule, clock = make_schedule()
    good = pods("good", 1)
    rounds(schedule, clock, good, Outcome.ANSWERED, 1)
    bad = [target for number in range(300) for target in pods(f"bad{number}", 10)]
    schedule.begin_round([*bad, *good])
    found = take_all(schedule)
    assert len(found) == SLOTS - PROVEN_SLOTS + 1
    assert "good-0" in found


def test_a_namespace_that_had_no_turn_is_first_in_the_next_round() -> None:
    schedule, clock = make_schedule()
    everyone = [target for number in range(200) for target in pods(f"n{number}", 1)]
    asked: list[str] = []
    for _ in range(5):
        schedule.begin_round(everyone)
        found = take_all(schedule)
        asked += found
        for uid in found:
            schedule.finish(uid, Outcome.CLOSED)
        clock.now += PERIOD
    assert Counter(asked).most_common(1)[0][1] - min(Counter(asked).values()) <= 1
    assert len(set(asked)) == 200


def test_a_pod_that_is_being_asked_is_not_asked_again_and_may_disappear() -> None:
    schedule, clock = make_schedule()
    schedule.begin_round(pods("a", 1))
    assert schedule.take() == "a-0"
    clock.now += PERIOD
    schedule.begin_round(pods("a", 1))
    assert not schedule.waiting
    schedule.begin_round([])
    schedule.finish("a-0", Outcome.ANSWERED)
    schedule.begin_round(pods("a", 1))
    assert take_all(schedule) == ["a-0"]


def test_new_pods_of_a_namespace_do_not_starve_behind_those_that_answer() -> None:
    schedule, clock = make_schedule()
    good = pods("a", 100)
    for _ in range(10):
        schedule.begin_round(good)
        for uid in take_all(schedule):
            schedule.finish(uid, Outcome.ANSWERED)
        clock.now += PERIOD
    everyone = [*good, Target("new", "a", "1")]
    for number in range(20):
        schedule.begin_round(everyone)
        found = take_all(schedule)
        for uid in found:
            schedule.finish(uid, Outcome.ANSWERED)
        if "new" in found:
            assert number < 10
            return
        clock.now += PERIOD
    pytest.fail("the new pod was never asked")
