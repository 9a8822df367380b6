"""Ends of which only the kubelet speaks: memory and disk of the host."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.reasons import ReasonClass
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.retry import delay_after
from finetune_operator.observed.outcomes import AttemptOutcome, attempt_outcome

from tests.support.operator import UID, World, make_failure, make_result


def ending(message: str, code: int, reason: str, /, **changes: object) -> AttemptOutcome:
    """How an attempt of PREPARE ends whose container and pod ended like this."""
    world = World()
    world.settle()
    world.end_pod("demo-prepare-0", message, code, reason)
    (pod,) = world.pods.values()
    child = replace(world.children["demo-prepare-0"], finished=True)
    found = attempt_outcome(uid=UID, child=child, pods=(replace(pod, **changes),), suspending=False)  # type: ignore[arg-type]  # any field of Pod
    assert found is not None
    return found


def test_a_container_that_the_kernel_killed_lacked_memory() -> None:
    found = ending("", 137, "OOMKilled")
    assert (found.reason, found.kind) == ("HostOutOfMemory", ReasonClass.PERMANENT)


def test_a_trainer_that_outlived_a_killed_process_lacked_memory_too() -> None:
    """The kernel may take one of PREPARE's processes; the trainer only sees that it is gone."""
    result = json.dumps(make_failure(Stage.PREPARE, "InternalError"))
    found = ending(result, 69, "OOMKilled")
    assert found.reason == "HostOutOfMemory"
    assert found.result is not None
    assert found.result.log_tail == ("last",)
    named = ending(json.dumps(make_failure(Stage.PREPARE, "InvalidDataset")), 65, "OOMKilled")
    assert named.reason == "InvalidDataset", "what the trainer can name is the cause"
    assert ending(json.dumps(make_result(Stage.PREPARE)), 0, "OOMKilled").outcome == "Succeeded"


@pytest.mark.parametrize(
    "message",
    [
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
        'Usage of EmptyDir volume "tmp" exceeds the limit "2Gi". ',
        'Container trainer exceeded its local ephemeral storage limit "2Gi". ',
    ],
)
def test_a_pod_that_outgrew_its_own_disk_is_named(message: str) -> None:
    found = ending("", 137, "Error", phase="Failed", reason="Evicted", message=message)
    assert (found.reason, found.kind) == ("ScratchFull", ReasonClass.PERMANENT)
    assert "2Gi" in found.message
    assert "workspace" in found.message


def test_a_node_that_lacks_disk_disrupts_the_pod_instead() -> None:
    message = "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 1Mi."
    found = ending("", 137, "Error", phase="Failed", reason="Evicted", message=message, disrupted=True)
    assert (found.outcome, found.kind) == ("Interrupted", ReasonClass.INTERRUPTED)


def test_an_attempt_that_gets_more_follows_soon_and_costs_no_retry() -> None:
    delay = delay_after(
        ReasonClass.PERMANENT, failures=1, interruptions=0, retries=0, ran=timedelta(), may_grow=True
    )
    assert delay == timedelta(seconds=10)
