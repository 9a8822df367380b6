from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import Decision, DeleteClaim, DeletePod
from finetune_operator.lifecycle.decide import decide

from tests.support.operator import NOW, make_spec
from tests.support.world import started


def test_a_pod_with_a_running_container_keeps_its_grace_period() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    pod = next(iter(world.pods.values()))
    world.succeed(Stage.PREPARE)
    world.pods[pod.uid] = replace(world.pods[pod.uid], idle=False)
    assert not any(isinstance(action, DeletePod) for action in world.decide().actions)


def test_a_sidecar_of_train_does_not_keep_the_gpu_for_the_trainers_grace_period() -> None:
    world = started(Stage.TRAIN)
    world.succeed(Stage.TRAIN)
    (pod,) = world.pods.values()
    world.pods[pod.uid] = replace(pod, idle=False)
    deleted = [action for action in world.decide().actions if isinstance(action, DeletePod)]
    assert deleted == [DeletePod(pod.name, pod.uid, 30)]


@pytest.mark.parametrize("ends", [True, False])
def test_a_sidecar_that_never_ends_shortens_the_time_for_debugging(*, ends: bool) -> None:
    keep = {"keepChildrenSeconds": {"success": 3600, "failure": 3600}}
    world = started(Stage.TRAIN, spec=make_spec(lifecycle=keep))
    world.succeed(Stage.TRAIN)
    train = world.children["demo-train-0"].uid
    (pod,) = (pod for pod in world.pods.values() if pod.owner_uid == train)
    world.pods[pod.uid] = replace(pod, idle=False)
    world.settle()
    assert "demo-train-0" in world.children, "a native sidecar has time to end"
    if ends:
        world.pods[pod.uid] = replace(pod, idle=True)
    world.wait(61)
    world.settle()
    assert ("demo-train-0" in world.children) == ends


def test_children_stay_for_the_configured_time() -> None:
    keep = {"keepChildrenSeconds": {"success": 100, "failure": 300}}
    world = started(spec=make_spec(lifecycle=keep))
    world.succeed(Stage.PREPARE)
    world.settle()
    assert set(world.children) == {"demo-prepare-0", "demo-train-0"}
    world.fail(Stage.TRAIN, "NonFiniteLoss")
    world.settle()
    world.wait(101)
    world.settle()
    assert set(world.children) == {"demo-train-0"}
    assert world.decide().requeue_time == NOW + timedelta(seconds=300)
    world.wait(200)
    world.settle()
    assert world.children == {}


@pytest.mark.parametrize(
    ("policy", "succeeds", "kept"),
    [
        ("Always", True, True),
        ("Always", False, True),
        ("OnFailure", True, False),
        ("OnFailure", False, True),
        ("Never", True, False),
        ("Never", False, False),
    ],
)
def test_the_workspace_stays_as_the_policy_says(policy: str, succeeds: bool, kept: bool) -> None:  # noqa: FBT001
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"keepWorkspace": policy}))
    if succeeds:
        world.succeed(Stage.MERGE)
    else:
        world.fail(Stage.MERGE, "ArtifactVerificationFailed")
    world.settle()
    assert (world.claim is not None) == kept


def test_a_finished_job_whose_spec_is_no_longer_readable_keeps_its_workspace() -> None:
    world = started(Stage.MERGE, spec=make_spec(lifecycle={"keepWorkspace": "Always"}))
    world.succeed(Stage.MERGE)
    world.settle()
    world.job = replace(world.job, spec={"from": "another version"})
    decision = world.decide()
    assert not any(isinstance(action, DeleteClaim) for action in decision.actions)
    assert decision.status is not None
    assert decision.status["phase"] == "Succeeded"


def test_a_workspace_without_its_label_is_found_when_the_job_ends() -> None:
    world = started(Stage.MERGE)
    assert world.claim is not None
    world.hidden.add(world.claim.uid)
    assert world.observe().claim is None
    world.succeed(Stage.MERGE)
    world.settle()
    assert world.job.status["phase"] == "Succeeded"
    assert world.claim is None


def test_a_job_that_has_ended_without_a_workspace_is_not_read_again() -> None:
    world = started(Stage.MERGE)
    world.succeed(Stage.MERGE)
    world.settle()
    assert world.claim is None
    assert isinstance(decide(world.observe(), world.settings, world.now), Decision)


def test_a_pod_without_its_label_is_waited_for_after_the_status_is_lost() -> None:
    world = started(Stage.TRAIN)
    pod = world.run_pod("demo-train-0")
    world.hidden.add(pod.uid)
    world.lingers = True
    world.job = replace(world.job, status={})
    world.settle()
    assert world.children == {}
    assert pod.uid in world.pods
    assert world.created == ["demo-prepare-0", "demo-train-0"]
    world.remove_deleted_pods()
    world.settle()
    assert world.created == ["demo-prepare-0", "demo-train-0", "demo-prepare-0"]
