from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.lifecycle.actions import CreateJob, Decision, DeleteJob, DeletePod, Need
from finetune_operator.lifecycle.decide import decide

from tests.support.operator import MERGE, make_job
from tests.support.world import World, started


def test_a_job_runs_its_three_stages_once_each_and_leaves_nothing() -> None:
    world = World()
    for stage in WORK_STAGES:
        world.settle()
        assert list(world.children) == [f"demo-{stage.slug}-0"]
        world.run_pod(f"demo-{stage.slug}-0")
        world.settle()
        assert world.condition("Reconciling") == ("True", stage.active_reason)
        world.wait(5)
        world.succeed(stage)
    world.settle()
    assert world.created == ["demo-prepare-0", "demo-train-0", "demo-merge-0"]
    assert world.children == {}
    assert world.claim is None
    status = world.job.status
    assert status["phase"] == "Succeeded"
    assert status["evaluation"]["verdict"] == "Improved"
    assert status["evaluation"]["interval"] == ["-1.25", "-0.75"]
    assert status["dataset"]["rejected"] == [{"reason": "EmptyAnswer", "rows": 1}]
    assert status["artifacts"] == MERGE["artifacts"]
    assert status["verification"]["klDivergence"] == "0.001"
    assert status["progress"]["percent"] == "100%"
    assert [(entry["stage"], entry["outcome"]) for entry in status["attempts"]] == [
        (stage.value, "Succeeded") for stage in WORK_STAGES
    ]
    assert world.condition("Succeeded") == ("True", "Completed")
    assert world.condition("Reconciling") == ("False", "Finished")
    assert world.condition("Stalled") == ("False", "Finished")
    for kind in ("DatasetReady", "ModelReady", "Trained", "Published"):
        assert world.condition(kind) == ("True", "StageSucceeded")


def test_status_advances_before_the_finished_job_is_deleted_and_the_next_created() -> None:
    world = started()
    spent = world.children["demo-prepare-0"]
    world.succeed(Stage.PREPARE)
    pod = next(iter(world.pods.values()))
    decision = world.decide()
    assert decision.status is not None
    assert decision.status["stage"]["name"] == "Train"
    assert decision.actions[:2] == (DeleteJob("demo-prepare-0", spent.uid), DeletePod(pod.name, pod.uid))
    assert isinstance(decision.actions[2], CreateJob)


def test_deciding_twice_gives_the_same_decision() -> None:
    world = started()
    world.succeed(Stage.PREPARE)
    assert world.decide() == world.decide()


def test_an_unchanged_observation_changes_no_status() -> None:
    world = started()
    world.run_pod("demo-prepare-0")
    world.settle()
    world.wait(3600)
    assert world.decide().status == world.job.status


def test_a_job_that_is_being_deleted_stays_untouched() -> None:
    world = World(job=make_job(deleting=True))
    decision = world.decide()
    assert decision.status is None
    assert decision.actions == ()


def test_volumes_are_needed_only_when_a_stage_depends_on_them() -> None:
    world = World()
    observation = replace(world.observe(), volumes=None)
    assert decide(observation, world.settings, world.now) is Need.VOLUMES
    world.settle()
    world.run_pod("demo-prepare-0")
    observation = replace(world.observe(), volumes=None)
    assert isinstance(decide(observation, world.settings, world.now), Decision)
