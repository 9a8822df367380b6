from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_operator.api.stages import Stage

from tests.support.operator import make_inventory, make_spec
from tests.support.world import SMALL, prepared, stalled, started


def test_the_deadline_ends_the_job_and_stops_its_pod() -> None:
    world = started(spec=make_spec(lifecycle={"deadlineSeconds": 60}))
    world.run_pod("demo-prepare-0")
    world.settle()
    assert world.decide().requeue_time is not None
    world.wait(61)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")
    assert world.children == {}


def test_a_result_that_came_before_the_deadline_was_noticed_counts() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"deadlineSeconds": 60}))
    world.succeed(Stage.MERGE)
    world.wait(3600)
    world.settle()
    assert world.condition("Succeeded") == ("True", "Completed")


def test_the_deadline_is_paused_while_the_job_waits_for_a_busy_gpu() -> None:
    world = prepared(spec=make_spec(lifecycle={"deadlineSeconds": 600}))
    world.settle()
    world.wait(100)
    pod = world.run_pod(
        "demo-train-0", phase="Pending", running=False, node="", unschedulable="0/3 nodes are available"
    )
    world.settle()
    assert world.condition("Reconciling") == ("True", "WaitingForGpu")
    assert world.condition("Stalled")[0] == "False"
    message = next(entry for entry in world.job.status["conditions"] if entry["type"] == "Reconciling")[
        "message"
    ]
    assert "NVIDIA L4" in message
    assert "0/3 nodes are available" in message
    assert world.decide().requeue_time is None
    world.wait(5000)
    world.settle()
    assert world.condition("Succeeded") == ("Unknown", "WaitingForGpu")
    world.pods[pod.uid] = replace(pod, phase="Running", running=True, node="gpu1", unschedulable=None)
    world.settle()
    assert world.condition("Reconciling") == ("True", "Training")
    assert world.job.status["waiting"] == {"totalSeconds": 5000}
    assert world.decide().requeue_time == world.now + timedelta(seconds=500)
    world.wait(501)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")


def test_the_deadline_is_paused_while_the_job_is_stalled() -> None:
    world = prepared(spec=make_spec(lifecycle={"deadlineSeconds": 600}))
    world.inventory = make_inventory()
    world.settle()
    world.wait(10_000)
    world.settle()
    assert stalled(world)[3] == "DoesNotFit"
    world.inventory = make_inventory(SMALL)
    world.settle()
    assert list(world.children) == ["demo-train-0"]


def test_the_deadline_ends_a_wait_for_the_destination_and_names_its_cause() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"deadlineSeconds": 60}))
    world.fail(Stage.MERGE, "DestinationUnwritable")
    world.settle()
    world.wait(61)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")
    assert "must not be DestinationUnwritable" in world.job.status["failure"]["message"]
    assert world.claim is not None, "the trained adapter is kept"
