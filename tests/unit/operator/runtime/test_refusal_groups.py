from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.runtime.refusal_groups import MAXIMUM_PROBERS, PATIENCE, Member, RefusalGroups, Times

from tests.support.operator import NOW

KIND = "Job/Quota"


def member(number: int, namespace: str = "a") -> Member:
    return ((namespace, f"job-{number}"), "create")


class Quota:
    """Jobs of one namespace that ask when their time has come, and a quota that admits some of them."""

    def __init__(self, count: int) -> None:
        self.groups = RefusalGroups(lambda: 0.5)
        self.now: datetime = NOW
        self.times: Times = {}
        self.asked = 0
        self.admitted: list[Member] = []
        self.free = 0
        for number in range(count):
            self.ask(member(number))

    def ask(self, each: Member) -> None:
        deferred = self.groups.defer(each, KIND, self.now)
        if deferred is not None:
            self.times |= deferred[1]
            return
        self.asked += 1
        if self.free:
            self.free -= 1
            self.admitted.append(each)
            self.times.pop(each, None)
            self.times |= self.groups.admit(each, self.now)
        else:
            self.times |= self.groups.refuse(each, KIND, "exceeded quota", self.now)

    def run(self, seconds: int) -> None:
        """Let time pass in steps of a second."""
        for _ in range(seconds):
            self.now += timedelta(seconds=1)
            for each, time in list(self.times.items()):
                if time <= self.now and each in self.times:
                    self.ask(each)


def test_one_of_a_thousand_refused_jobs_asks_for_all_and_ever_more_rarely() -> None:
    quota = Quota(1000)
    assert quota.asked == 1
    quota.run(3600)
    assert quota.asked <= 20


def test_a_quota_that_is_freed_is_used_to_the_last_place() -> None:
    quota = Quota(100)
    quota.run(60)
    before = quota.asked
    quota.free = 10
    quota.run(600)
    assert len(quota.admitted) == 10
    assert quota.asked - before <= 10 + 16 + 5, "at most one round too many"


def test_a_quota_that_is_lifted_admits_all_within_seconds_of_the_first() -> None:
    quota = Quota(1000)
    quota.free = 1000
    quota.run(20 + 25)
    assert len(quota.admitted) == 1000
    assert MAXIMUM_PROBERS == 64


def test_members_take_turns_so_that_a_large_one_does_not_block_a_small_one() -> None:
    groups, now = RefusalGroups(lambda: 0.5), NOW
    times = groups.refuse(member(0), KIND, "large", now)
    times |= groups.refuse(member(1), KIND, "small", now)
    assert times[member(0)] == now + timedelta(seconds=15)
    now += timedelta(seconds=15)
    times |= groups.refuse(member(0), KIND, "large", now)
    assert times[member(1)] == now + timedelta(seconds=30)
    assert times[member(0)] == now + timedelta(seconds=30) + PATIENCE


def test_a_member_that_is_gone_passes_its_turn_on() -> None:
    groups = RefusalGroups(lambda: 0.5)
    groups.refuse(member(0), KIND, "no", NOW)
    groups.refuse(member(1), KIND, "no", NOW)
    assert groups.leave_all(member(0)[0]) == {member(1): NOW + timedelta(seconds=15)}
    assert groups.leave(member(1)) == {}
    assert groups.defer(member(2), KIND, NOW) is None, "an empty group holds nobody"


def test_other_namespaces_kinds_and_causes_are_not_held() -> None:
    groups = RefusalGroups(lambda: 0.5)
    groups.refuse(member(0), KIND, "no", NOW)
    assert groups.defer(member(1, "b"), KIND, NOW) is None
    assert groups.defer(member(1), "PersistentVolumeClaim/Quota", NOW) is None
    assert groups.defer(member(1), KIND, NOW) is not None


def test_a_member_with_another_cause_changes_its_group() -> None:
    groups = RefusalGroups(lambda: 0.5)
    groups.refuse(member(0), KIND, "no", NOW)
    groups.refuse(member(0), "Job/policy", "no", NOW)
    assert groups.defer(member(1), KIND, NOW) is None
    assert groups.defer(member(1), "Job/policy", NOW) is not None


def test_nobody_waits_for_ever_for_a_prober_without_a_trace() -> None:
    groups = RefusalGroups(lambda: 0.5)
    groups.refuse(member(0), KIND, "no", NOW)
    late = NOW + timedelta(seconds=15) + PATIENCE
    assert groups.defer(member(1), KIND, late) is None
