from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import DeleteClaim, DeleteJob, DeletePod
from finetune_operator.lifecycle.deletion import made_by_operator, may_delete
from finetune_operator.observed.observation import Observation

from tests.support.world import started

OTHER = "uid-of-another-owner"


def observed(**changes: Any) -> Observation:
    """A running TRAIN with its claim; `changes` replace members of the observation."""
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    return replace(world.observe(), **changes)


def deletions(observation: Observation) -> list[DeleteJob | DeletePod | DeleteClaim]:
    """The deletion of every observed object."""
    claim = observation.claim
    assert claim is not None
    return [
        *(DeleteJob(child.name, child.uid) for child in observation.children),
        *(DeletePod(pod.name, pod.uid) for pod in observation.pods),
        DeleteClaim(claim.name, claim.uid),
    ]


def test_the_operator_may_delete_what_it_has_made() -> None:
    observation = observed()
    assert len(deletions(observation)) == 3
    assert all(may_delete(observation, action) for action in deletions(observation))


def test_the_job_and_the_claim_of_another_owner_stay() -> None:
    before = observed()
    assert before.claim is not None
    foreign = replace(
        before,
        children=tuple(replace(child, owner_uid=OTHER) for child in before.children),
        claim=replace(before.claim, owner_uid=OTHER),
        pods=tuple(replace(pod, job_uid="") for pod in before.pods),
    )
    assert not any(may_delete(foreign, action) for action in deletions(before))


def test_an_object_of_the_same_name_but_another_uid_stays() -> None:
    observation = observed()
    for action in deletions(observation):
        assert not may_delete(observation, replace(action, uid=OTHER))


@pytest.mark.parametrize(
    ("owner", "run", "own"),
    [(None, "", True), (OTHER, "uid-of-a-namesake", True), (OTHER, "", False)],
    ids=["of a known Job", "of a Job that is gone", "with the label alone"],
)
def test_a_pod_is_known_by_its_job_or_by_its_run_spec(owner: str | None, run: str, *, own: bool) -> None:
    before = observed()
    (pod,) = before.pods
    pod = replace(pod, owner_uid=owner or pod.owner_uid, job_uid=run)
    observation = replace(before, pods=(pod,))
    assert made_by_operator(pod, observation) is own
    assert may_delete(observation, DeletePod(pod.name, pod.uid)) is own
