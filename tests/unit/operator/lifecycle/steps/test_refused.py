from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import CreateJob, DeleteJob, ExpandClaim, SuspendJob
from finetune_operator.lifecycle.refusals import action_key
from finetune_operator.observed.observation import Rejection
from finetune_operator.placement.storage import JobVolumes, MountedClaim, StorageClass

from tests.support.operator import make_spec
from tests.support.world import World, prepared, started

RETRY = timedelta(seconds=30)


def with_small_workspace(world: World) -> World:
    """The same world with a workspace that must grow before TRAIN."""
    assert world.claim is not None
    claim = MountedClaim(world.claim.name, world.claim.uid, ("ReadWriteOnce",), "1Mi")
    expandable = StorageClass("standard", "csi", waits_for_consumer=True, expandable=True)
    world.volumes = JobVolumes(workspace=claim, storage_class=expandable)
    return world


def test_a_refused_expansion_holds_back_train_but_not_the_end_of_prepare() -> None:
    world = with_small_workspace(prepared())
    first = world.decide()
    (expand,) = (action for action in first.actions if isinstance(action, ExpandClaim))
    world.refusals = {action_key(expand): Rejection("over quota", world.now + RETRY)}
    decision = world.step()
    kinds = {type(action) for action in decision.actions}
    assert DeleteJob in kinds
    assert not kinds & {ExpandClaim, CreateJob}
    assert {type(action) for action in decision.held} == {ExpandClaim, CreateJob}
    assert decision.requeue_time == world.now + RETRY
    assert world.condition("Succeeded") == ("Unknown", "ChildRefused")
    world.wait(31)
    again = world.step()
    assert {type(action) for action in again.actions} >= {ExpandClaim, CreateJob}
    assert world.condition("Succeeded") == ("Unknown", "ChildRefused"), "until a try succeeds"


def test_a_refused_suspension_changes_nothing_else() -> None:
    world = started(Stage.TRAIN)
    world.job = replace(world.job, spec=make_spec(suspend=True))
    (action,) = world.decide().actions
    assert isinstance(action, SuspendJob)
    world.refusals = {action_key(action): Rejection("policy", world.now + RETRY)}
    decision = world.decide()
    assert decision.actions == ()
    assert decision.held == (action,)
