from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import Decision, Need
from finetune_operator.lifecycle.decide import decide
from finetune_operator.lifecycle.steps.unwatched import MISSING_POD_REREAD, REREAD

from tests.support.operator import SETTINGS, make_inventory, make_node
from tests.support.world import World, prepared, started


def look(world: World, **changes: Any) -> Decision | Need:
    return decide(replace(world.observe(), **changes), SETTINGS, world.now)


@pytest.mark.parametrize("kind", ["pod", "Job", "claim"])
def test_an_object_without_its_label_is_read_every_ten_seconds(kind: str) -> None:
    world = started(Stage.TRAIN)
    pod = world.run_pod("demo-train-0")
    world.settle()
    assert isinstance(look(world), Decision), "nothing is hidden yet"
    if kind == "pod":
        world.pods[pod.uid] = replace(pod, watched=False)
    elif kind == "Job":
        world.children["demo-train-0"] = replace(world.children["demo-train-0"], watched=False)
    else:
        assert world.claim is not None
        world.claim = replace(world.claim, watched=False)
    assert look(world) is Need.FRESH_CHILDREN
    assert look(world, last_read=world.now - REREAD) is Need.FRESH_CHILDREN
    assert look(world, last_read=world.now + timedelta(hours=1)) is Need.FRESH_CHILDREN, (
        "the clock was set back"
    )
    for known in ({"fresh": True}, {"last_read": world.now}):
        found = look(world, **known)
        assert isinstance(found, Decision)
        assert found.requeue_time == world.now + REREAD


def test_a_pod_that_disappears_from_the_watch_is_looked_for() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.settle()
    world.pods.clear()
    assert look(world) is Need.FRESH_CHILDREN
    assert isinstance(look(world, last_read=world.now), Decision)
    assert look(world, last_read=world.now - MISSING_POD_REREAD) is Need.FRESH_CHILDREN
    world.children["demo-train-0"] = replace(world.children["demo-train-0"], suspended=True)
    assert isinstance(look(world), Decision), "a suspended Job has no pod on purpose"


def test_a_train_job_is_not_replaced_while_its_pod_runs_without_a_label() -> None:
    """The watch has never shown the pod, so its node is not recorded."""
    world = prepared()
    world.settle()
    hidden = world.run_pod("demo-train-0", watched=False)
    world.pods.clear()
    world.inventory = make_inventory(make_node("other", "NVIDIA-A100-SXM4-80GB", 81920))
    assert look(world) is Need.FRESH_CHILDREN
    world.pods[hidden.uid] = hidden
    found = look(world, fresh=True)
    assert isinstance(found, Decision)
    assert found.actions == ()
    assert found.requeue_time == world.now + timedelta(seconds=10)
