"""What is known about one FineTuneJob, also beside the objects of an earlier one of its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.cluster.store_entry import REMEMBERED_JOBS, Entry
from finetune_operator.observed.observation import ChildJob, Claim, Pod

from tests.support.operator import NOW, make_job
from tests.support.world import World


@pytest.fixture
def known() -> tuple[ChildJob, Pod, Claim]:
    """Return PREPARE's Job, its running pod and the claim of the workspace."""
    world = World()
    world.settle()
    child = world.children["demo-prepare-0"]
    assert world.claim is not None
    return child, replace(world.run_pod(child.name), owner_uid=child.uid), world.claim


def entry(child: ChildJob, pod: Pod, claim: Claim) -> Entry:
    return Entry(make_job(), {child.uid: child}, {pod.uid: pod}, {claim.uid: claim})


def test_the_claim_of_an_earlier_job_is_told_from_the_own_one(known: tuple[ChildJob, Pod, Claim]) -> None:
    child, pod, own = known
    earlier = replace(own, uid="earlier", owner_uid="another")
    both = replace(entry(child, pod, own), claims={earlier.uid: earlier, own.uid: own})
    assert (both.claim(own=True), both.claim(own=False)) == (own, earlier)
    assert entry(child, pod, own).claim(own=False) is None
    assert Entry(claims={own.uid: own}).claim(own=True) is None, "the FineTuneJob is gone"


def test_a_pod_runs_with_an_address_and_a_job_of_this_very_finetunejob(
    known: tuple[ChildJob, Pod, Claim],
) -> None:
    child, pod, claim = known
    assert entry(child, pod, claim).running_pods() == [(make_job(), child, pod)]
    assert entry(child, replace(pod, ip=""), claim).running_pods() == []
    assert entry(replace(child, owner_uid="another"), pod, claim).running_pods() == []
    assert replace(entry(child, pod, claim), job=None).running_pods() == []


def test_a_job_that_only_a_pod_or_the_status_names_is_known(known: tuple[ChildJob, Pod, Claim]) -> None:
    child, pod, claim = known
    named = Entry(make_job(status={"stage": {"jobName": child.name}}), pods={pod.uid: pod})
    assert named.identities().job_names == {child.name}
    assert named.identities().job_uids == {child.uid}
    assert named.identities().claim_uids == set()
    assert entry(child, pod, claim).identities().claim_uids == {claim.uid}


def test_the_last_jobs_are_known_after_they_are_gone() -> None:
    former = Entry(make_job())
    for number in range(REMEMBERED_JOBS + 1):
        former.remember_job(f"job-{number}")
        former.remember_job("job-0")
    assert former.identities().job_uids == {
        "job-0",
        *(f"job-{each}" for each in range(2, REMEMBERED_JOBS + 1)),
    }


def test_nothing_is_unstarted_once_its_finetunejob_is_gone(known: tuple[ChildJob, Pod, Claim]) -> None:
    child, _pod, claim = known
    later = NOW.replace(year=NOW.year + 1)
    waiting = Entry(make_job(), {child.uid: child}, {}, {claim.uid: claim})
    assert [each.uid for each in waiting.unstarted(later)] == [child.uid]
    assert replace(waiting, job=None).unstarted(later) == []


def test_an_entry_is_empty_without_finetunejob_and_objects(known: tuple[ChildJob, Pod, Claim]) -> None:
    child, pod, claim = known
    assert Entry(warnings={"uid": "text"}).empty
    for held in (
        Entry(make_job()),
        Entry(children={"": child}),
        Entry(pods={"": pod}),
        Entry(claims={"": claim}),
    ):
        assert not held.empty
