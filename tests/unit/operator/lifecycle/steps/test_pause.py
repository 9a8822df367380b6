from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import SuspendJob

from tests.support.operator import make_failure, make_inventory, make_job, make_spec
from tests.support.world import World, prepared, stalled, started


def test_suspending_stops_the_stage_and_resuming_continues_the_same_attempt() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.job = replace(world.job, spec=make_spec(suspend=True), generation=2)
    decision = world.step()
    assert any(isinstance(action, SuspendJob) and action.suspend for action in decision.actions)
    assert world.condition("Suspended") == ("True", "SuspendedByUser")
    assert world.job.status["phase"] == "Suspended"
    interrupted = make_failure(Stage.TRAIN, "Interrupted", outcome="Interrupted")
    world.end_pod("demo-train-0", interrupted, 75, deleting=True)
    world.settle()
    assert [entry["stage"] for entry in world.job.status["attempts"]] == ["Prepare"]
    world.pods.clear()
    world.job = replace(world.job, spec=make_spec(), generation=3)
    world.settle()
    assert not world.children["demo-train-0"].suspended
    assert world.condition("Suspended") == ("False", "Running")
    assert world.job.status["stage"]["attempt"] == 0
    assert world.job.status["observedGeneration"] == 3


def test_a_job_that_a_queue_had_suspended_stays_suspended_after_the_users_suspension() -> None:
    world = started(Stage.TRAIN)
    world.children["demo-train-0"] = replace(world.children["demo-train-0"], suspended=True)
    for suspend in (True, False):
        world.job = replace(world.job, spec=make_spec(suspend=suspend))
        world.settle()
        assert world.children["demo-train-0"].suspended
    assert world.condition("Reconciling") == ("True", "JobSuspended")


def test_a_job_created_suspended_creates_nothing_until_it_is_resumed() -> None:
    world = World(job=make_job(spec=make_spec(suspend=True)))
    world.settle()
    assert world.created == []
    world.job = replace(world.job, spec=make_spec())
    world.settle()
    assert world.created == ["demo-prepare-0"]


def test_a_stage_that_succeeds_while_being_suspended_is_kept() -> None:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.job = replace(world.job, spec=make_spec(suspend=True))
    world.step()
    world.succeed(Stage.TRAIN)
    world.settle()
    assert world.condition("Trained") == ("True", "StageSucceeded")
    assert world.children == {}
    assert world.created[-1] == "demo-train-0"


def test_suspending_a_stalled_job_suspends_it_and_resuming_stalls_it_again() -> None:
    world = prepared()
    world.inventory = make_inventory()
    world.settle()
    world.job = replace(world.job, spec=make_spec(suspend=True))
    world.settle()
    assert world.condition("Suspended")[0] == "True"
    assert world.condition("Stalled")[0] == "False"
    assert "waiting" not in world.job.status
    world.job = replace(world.job, spec=make_spec())
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"


def test_a_resumed_job_tries_its_destination_at_once() -> None:
    world = started(Stage.MERGE)
    for attempt in range(7):
        world.fail(Stage.MERGE, "DestinationUnwritable", attempt)
        world.settle()
        world.wait(0 if attempt == 6 else 600)
        world.settle()
    assert world.children == {}
    world.job = replace(world.job, spec=make_spec(suspend=True))
    world.settle()
    assert world.children == {}
    world.job = replace(world.job, spec=make_spec())
    world.settle()
    assert list(world.children) == ["demo-merge-7"]
