from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.contract.run_spec import CONTRACT_VERSION
from finetune_operator.lifecycle.actions import CreateJob
from finetune_operator.observed.observation import Rejection

from tests.support.operator import make_failure, make_result, make_spec
from tests.support.world import World, started

REPORT = "demo-report-0"


def asking(**changes: Any) -> dict[str, Any]:
    claim = {"persistentVolumeClaim": {"claimName": "artifacts"}}
    return make_spec(output={"destination": claim, "reports": "Destinations"}, **changes)


def ended(*, succeeded: bool = True, **changes: Any) -> World:
    """A world whose job has just ended."""
    if succeeded:
        world = started(Stage.MERGE, spec=asking(**changes))
        world.succeed(Stage.MERGE)
    else:
        world = started(spec=asking(**changes))
        world.fail(Stage.PREPARE, "InvalidDataset")
    world.settle()
    return world


def verdict(world: World) -> tuple[Any, ...]:
    return (world.job.status["phase"], world.condition("Succeeded"), world.job.status.get("failure"))


def has_workspace(world: World) -> bool:
    return world.claim is not None


def message(world: World) -> str:
    found = [each for each in world.job.status["conditions"] if each["type"] == "ReportPublished"]
    return str(found[0]["message"])


@pytest.mark.parametrize("succeeded", [True, False])
def test_the_report_is_copied_after_the_end_before_the_workspace_goes(*, succeeded: bool) -> None:
    world = ended(succeeded=succeeded, lifecycle={"keepWorkspace": "Never"})
    before = verdict(world)
    assert world.condition("ReportPublished") == ("Unknown", "PublishingReport")
    assert set(world.children) == {REPORT}
    assert has_workspace(world), "the report is in there"
    world.end_pod(REPORT, make_result(Stage.REPORT))
    world.settle()
    assert world.condition("ReportPublished") == ("True", "ReportPublished")
    assert not world.children
    assert not has_workspace(world)
    assert verdict(world) == before


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_destination_that_refuses_the_report_never_changes_the_verdict(*, succeeded: bool) -> None:
    world = ended(succeeded=succeeded)
    before = verdict(world)
    world.end_pod(REPORT, make_failure(Stage.REPORT, "DestinationAccessDenied"), 65)
    world.settle()
    assert world.condition("ReportPublished") == ("False", "DestinationAccessDenied")
    assert message(world) == "must not be DestinationAccessDenied"
    assert verdict(world) == before
    assert world.children == {}
    assert world.created.count(REPORT) == 1, "it is not tried again"


def test_the_job_knows_the_end_that_no_trainer_could_record() -> None:
    world = ended(succeeded=False)
    pod = world.bodies[REPORT]["spec"]["template"]
    task = json.loads(pod["metadata"]["annotations"]["finetune.dev/run"])["report"]
    assert task["outcome"] == "Failed"
    assert task["failure"]["reason"] == "InvalidDataset"
    assert [entry["outcome"] for entry in task["attempts"]] == ["Failed"]
    assert world.bodies[REPORT]["spec"]["activeDeadlineSeconds"] == 1800


def test_a_job_that_does_not_ask_for_it_has_no_such_pod() -> None:
    for spec in (make_spec(), asking()):
        spec["output"].pop("reports", None)
        world = started(Stage.MERGE, spec=spec)
        world.succeed(Stage.MERGE)
        world.settle()
        assert REPORT not in world.created
        assert "ReportPublished" not in {each["type"] for each in world.job.status["conditions"]}


def test_a_job_that_never_began_has_no_report() -> None:
    world = World()
    world.job = replace(world.job, spec={**asking(), "training": {"epochs": 1, "maximumSteps": 1}})
    world.settle()
    assert world.job.status["phase"] == "Failed"
    assert world.condition("ReportPublished") == ("False", "NoReport")
    assert world.created == []


def test_a_report_that_takes_too_long_frees_the_workspace_and_says_why() -> None:
    world = ended()
    world.run_pod(REPORT, running=False, unschedulable="0/3 nodes are available", node="")
    assert world.decide().requeue_time is not None
    world.wait(1801)
    world.settle()
    assert world.condition("ReportPublished") == ("False", "ReportLost")
    assert "0/3 nodes are available" in message(world)
    assert not world.children
    assert not has_workspace(world)


def test_a_pod_without_a_result_is_a_lost_report() -> None:
    world = ended()
    world.end_pod(REPORT, "", 2)
    world.settle()
    assert world.condition("ReportPublished") == ("False", "ReportLost")
    assert "it left no result" in message(world)


def test_an_evicted_pod_is_replaced_and_its_result_is_not_the_outcome() -> None:
    world = ended()
    stopped = make_failure(Stage.REPORT, "Interrupted", outcome="Interrupted")
    world.end_pod(REPORT, stopped, 75, disrupted=True)
    world.settle()
    assert world.condition("ReportPublished") == ("Unknown", "PublishingReport")


def test_a_report_waits_for_a_pod_that_still_writes_the_workspace() -> None:
    world = started(Stage.TRAIN, spec=asking(lifecycle={"deadlineSeconds": 60}))
    world.run_pod("demo-train-0")
    world.lingers = True
    world.wait(61)
    world.settle()
    assert world.condition("Succeeded") == ("False", "DeadlineExceeded")
    assert REPORT not in world.created
    assert "waits for pod demo-train-0" in message(world)
    world.remove_deleted_pods()
    world.settle()
    assert REPORT in world.created


def refused(world: World, rejection: Rejection) -> None:
    """End a job whose report the API server refuses."""
    world.succeed(Stage.MERGE)
    world.step(lose_actions=True)
    world.refusals = {f"create {REPORT}": rejection}


def test_a_job_that_the_api_server_refuses_says_so_until_it_is_late() -> None:
    world = started(Stage.MERGE, spec=asking())
    refused(world, Rejection("exceeded quota", world.now + timedelta(seconds=15)))
    world.step()
    assert message(world) == "exceeded quota"
    assert REPORT not in world.created, "it is not asked for before its time"
    decision = world.decide()
    assert decision.held
    assert decision.requeue_time == world.now + timedelta(seconds=15)
    world.wait(15)
    assert [type(action) for action in world.decide().actions] == [CreateJob]
    world.wait(1801)
    world.step()
    assert world.condition("ReportPublished") == ("False", "ReportLost")
    assert message(world).endswith("found: exceeded quota")


def test_an_invalid_job_of_the_report_is_a_lost_report() -> None:
    world = started(Stage.MERGE, spec=asking())
    refused(world, Rejection("no such field", world.now, final=True))
    world.settle()
    assert world.condition("ReportPublished") == ("False", "ReportLost")
    assert message(world) == "no such field"


def test_a_refusal_of_the_last_attempt_is_none_of_the_report() -> None:
    world = started(Stage.MERGE, spec=asking())
    world.succeed(Stage.MERGE)
    world.rejection = Rejection("the API server rejected Job demo-merge-1", world.now, final=True)
    world.settle()
    assert REPORT in world.created
    assert world.condition("ReportPublished") == ("Unknown", "PublishingReport")


def test_a_report_that_was_never_started_in_time_says_so() -> None:
    world = ended()
    del world.children[next(iter(world.children))]
    world.job = replace(
        world.job,
        status={
            **world.job.status,
            "conditions": [
                each for each in world.job.status["conditions"] if each["type"] != "ReportPublished"
            ],
        },
    )
    world.wait(1801)
    world.step()
    assert message(world).endswith("found: its Job was never created")


def test_a_shared_workspace_is_reported_from_too() -> None:
    world = ended(workspace={"existingClaim": "shared"})
    assert REPORT in world.created


MLFLOW = {"mlflow": {"uri": "https://mlflow.example.com", "secretRef": {"name": "login"}}}
RECORD = {"kind": "MLflow", "recorded": True, "run": "39ae097c"}


def failed(spec: dict[str, Any], *, version: str = CONTRACT_VERSION) -> World:
    """A world whose job has just failed in PREPARE, whose trainer speaks this version."""
    world = started(spec=spec)
    failure = make_failure(Stage.PREPARE, "InvalidDataset")
    world.end_pod("demo-prepare-0", {**failure, "version": version}, 65)
    world.settle()
    return world


def tracked(*, reports: str = "Workspace", **tracking: Any) -> dict[str, Any]:
    claim = {"persistentVolumeClaim": {"claimName": "artifacts"}}
    return make_spec(output={"destination": claim, "reports": reports}, tracking={**MLFLOW, **tracking})


def run_spec_and_secrets(world: World) -> tuple[dict[str, Any], list[str]]:
    template = world.bodies[REPORT]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    run = json.loads(template["metadata"]["annotations"]["finetune.dev/run"])
    return run, [each["secretRef"]["name"] for each in container.get("envFrom", ())]


def test_a_tracker_is_told_of_a_failed_job_that_wants_no_copies() -> None:
    world = failed(tracked())
    before = verdict(world)
    run, secrets = run_spec_and_secrets(world)
    assert run["report"]["destinations"] == []
    assert run["report"]["failure"]["reason"] == "InvalidDataset"
    assert run["tracking"]["mlflow"]["uri"] == "https://mlflow.example.com"
    assert secrets == ["login"]
    assert world.condition("Tracked") == ("Unknown", "PublishingReport")
    world.end_pod(REPORT, make_result(Stage.REPORT, report={"tracking": [RECORD]}))
    world.settle()
    assert world.condition("Tracked") == ("True", "RunRecorded")
    assert world.job.status["tracking"] == [{"kind": "MLflow", "run": "39ae097c"}]
    assert not world.children
    assert verdict(world) == before
    kinds = {each["type"] for each in world.job.status["conditions"]}
    assert "ReportPublished" not in kinds


def test_copies_and_trackers_succeed_or_fail_apart() -> None:
    failure = {"reason": "DestinationAccessDenied", "message": "no right"}
    refused = {"kind": "MLflow", "recorded": False, "message": "it is down"}
    for told, problem, expected in (
        (RECORD, failure, ("False", "True")),
        (refused, None, ("True", "False")),
    ):
        world = failed(tracked(reports="Destinations"))
        report = {"tracking": [told], **({"failure": problem} if problem else {})}
        world.end_pod(REPORT, make_result(Stage.REPORT, report=report))
        world.settle()
        found = (world.condition("ReportPublished"), world.condition("Tracked"))
        assert tuple(each[0] for each in found if each) == expected
        assert not world.children


def test_a_pod_that_dies_or_never_runs_says_that_the_tracker_has_nothing() -> None:
    world = failed(tracked())
    world.end_pod(REPORT, "", 137, "OOMKilled")
    world.settle()
    assert world.condition("Tracked") == ("False", "TrackerFailed")
    late = failed(tracked())
    late.wait(1900)
    late.settle()
    assert late.condition("Tracked") == ("False", "TrackerFailed")
    assert not late.children


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        (make_spec(), CONTRACT_VERSION),
        (tracked(), "1.9"),
        (make_spec(tracking={"modelRegistry": {"uri": "https://registry.example.com"}}), CONTRACT_VERSION),
    ],
    ids=["no tracker", "an earlier trainer", "a registry of models"],
)
def test_no_pod_is_started_if_no_tracker_can_be_told(spec: dict[str, Any], version: str) -> None:
    world = failed(spec, version=version)
    assert REPORT not in world.bodies
    assert "Tracked" not in {each["type"] for each in world.job.status["conditions"]}


def test_a_job_that_succeeded_is_told_by_merge_alone() -> None:
    world = started(Stage.MERGE, spec=tracked())
    world.succeed(Stage.MERGE)
    world.settle()
    assert world.condition("Succeeded") == ("True", "Completed")
    assert REPORT not in world.bodies
