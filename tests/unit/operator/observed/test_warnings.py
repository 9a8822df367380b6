from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.formats import format_time
from finetune_operator.api.stages import JOB_SET, Stage
from finetune_operator.observed.observation import Claim
from finetune_operator.observed.warnings import (
    EventRecord,
    cause_of,
    has_passed,
    project_event,
    selector_of,
    unstarted,
)

from tests.support.operator import NOW, UID
from tests.support.world import World, started

QUOTA = 'Error creating: pods "demo-train-0-x8k2l" is forbidden: exceeded quota: gpus'
VAGUE = "Unable to attach or mount volumes: unmounted volumes=[rows]: timed out waiting for the condition"


def event(seconds: int, reason: str, message: str = "m", **changes: Any) -> EventRecord:
    record = EventRecord(
        uid="pod-1",
        warning=reason not in {"Pulling", "SuccessfulCreate"},
        reason=reason,
        message=message,
        time=format_time(NOW + timedelta(seconds=seconds))[:19],
    )
    return replace(record, **changes)


def test_both_forms_of_events_have_the_same_times() -> None:
    about = {"type": "Warning", "reason": "FailedMount", "message": "m", "involvedObject": {"uid": "pod-1"}}
    old = project_event({**about, "lastTimestamp": "2026-11-24T09:00:01Z", "eventTime": None})
    new = project_event({**about, "lastTimestamp": None, "eventTime": "2026-11-24T09:00:01.250000Z"})
    assert old == new == event(1, "FailedMount")
    series = {"lastObservedTime": "2026-11-24T09:00:02.000000Z"}
    assert (
        project_event({**about, "eventTime": "2026-11-24T09:00:01.250000Z", "series": series}).time > old.time
    )
    assert project_event({**about}).time == ""


def test_only_a_job_is_known_by_its_name() -> None:
    for kind, known in (("Job", ("uid-1", "Job/demo")), ("Pod", ("uid-1",))):
        record = project_event({"involvedObject": {"uid": "uid-1", "kind": kind, "name": "demo"}})
        assert record.sources == known


def test_the_job_of_a_job_set_is_a_source_of_its_causes() -> None:
    world = started(Stage.TRAIN)
    child = world.children["demo-train-0"]
    found = [
        {selector_of(source) for source in one.sources}
        for one in unstarted(
            [child, replace(child, uid="set", kind=JOB_SET)], [], None, child.started + timedelta(minutes=1)
        )
    ]
    assert found == [
        {f"involvedObject.uid={child.uid}"},
        {"involvedObject.uid=set", "involvedObject.kind=Job,involvedObject.name=demo-train-0-r-0"},
    ]


def test_a_job_set_that_cannot_make_its_job_says_why() -> None:
    assert (
        cause_of([event(1, "JobCreationFailed", "exceeded quota")], NOW)
        == "JobCreationFailed: exceeded quota"
    )


def test_the_newest_blocking_warning_is_the_cause() -> None:
    events = [event(9, "FailedAttachVolume", "new"), event(1, "FailedMount", "old")]
    assert cause_of(events, NOW) == "FailedAttachVolume: new"
    assert cause_of([], NOW) == ""
    assert len(cause_of([event(1, "FailedMount", "x" * 9999)], NOW)) == 512
    assert cause_of([event(1, "FailedMount", "a\x1b[31mb")], NOW) == "FailedMount: a [31mb"


@pytest.mark.parametrize(
    "reason",
    ["DNSConfigForming", "PolicyViolation", "Unhealthy", "FailedToRetrieveImagePullSecret", "FailedKillPod"],
)
def test_warnings_that_keep_no_pod_from_starting_are_ignored(reason: str) -> None:
    assert cause_of([event(1, reason)], NOW) == ""


@pytest.mark.parametrize(
    "reason",
    ["FailedCreate", "FailedMount", "FailedCreatePodSandBox", "NetworkNotReady", "ProvisioningFailed"],
)
def test_warnings_that_keep_a_pod_from_starting_count(reason: str) -> None:
    assert cause_of([event(1, reason)], NOW) == f"{reason}: m"


def test_a_cause_ends_when_the_object_has_passed_it() -> None:
    events = [event(1, "FailedMount"), event(1, "Pulling")]
    assert cause_of(events, NOW) == "", "a pull begins after all volumes are mounted"
    assert has_passed(events, NOW)
    assert not has_passed(events, NOW + timedelta(seconds=2)), "another pod of the same Job"
    assert cause_of([*events, event(2, "FailedCreatePodSandBox")], NOW) == "FailedCreatePodSandBox: m"


def test_what_kept_a_pod_from_its_node_is_no_cause_once_it_has_one() -> None:
    events = [event(1, "FailedScheduling"), event(5, "FailedMount")]
    assert cause_of(events[:1], NOW + timedelta(seconds=5)) == ""
    assert cause_of(events, NOW + timedelta(seconds=5)) == "FailedMount: m", "within the same second"


def test_a_specific_cause_counts_before_a_vague_one() -> None:
    events = [event(100, "FailedMount", VAGUE), event(60, "FailedMount", 'configmap "rows" not found')]
    assert cause_of(events, NOW) == 'FailedMount: configmap "rows" not found'
    assert cause_of([*events, event(999, "FailedMount", VAGUE)], NOW) == f"FailedMount: {VAGUE}"


def test_two_causes_do_not_take_turns_but_an_ended_one_is_replaced() -> None:
    first, second = event(10, "FailedMount", 'secret "a"'), event(20, "FailedMount", 'secret "b"')
    shown = cause_of([first], NOW)
    assert cause_of([first, second], NOW, shown) == shown
    assert cause_of([first, event(400, "FailedMount", 'secret "b"')], NOW, shown) == 'FailedMount: secret "b"'


def test_the_name_of_each_try_does_not_change_what_is_shown() -> None:
    shown = cause_of([event(1, "FailedCreate", QUOTA)], NOW)
    events = [event(second, "FailedCreate", QUOTA.replace("x8k2l", f"yyyy{second}")) for second in range(9)]
    assert cause_of(events, NOW, shown) == shown


def names(world: World, seconds: float, claim: Claim | None = None) -> dict[str, set[str]]:
    """uids of the objects that should have started, with those whose Events are read."""
    found = unstarted(
        world.children.values(), world.pods.values(), claim, world.now + timedelta(seconds=seconds)
    )
    return {each.uid: set(each.sources) for each in found}


def test_a_job_without_a_pod_is_asked_about_after_a_moment() -> None:
    world = started(Stage.TRAIN)
    child = world.children["demo-train-0"]
    assert names(world, 2) == {}
    assert names(world, 3) == {child.uid: {child.uid}}
    ended: tuple[dict[str, Any], ...] = ({"suspended": True}, {"deleting": True}, {"finished": True})
    for changes in ended:
        world.children["demo-train-0"] = replace(child, **changes)
        assert names(world, 3) == {}
    world.children["demo-train-0"] = replace(child, resumed=world.now + timedelta(hours=1))
    assert names(world, 3602) == {}
    assert names(world, 3603) == {child.uid: {child.uid}}


def test_a_pod_is_asked_about_while_its_state_says_no_cause() -> None:
    world = started(Stage.TRAIN)
    pod = world.run_pod("demo-train-0", phase="Pending", running=False, scheduled=world.now)
    assert names(world, 2) == {}
    assert names(world, 3) == {pod.uid: {pod.uid}}
    for changes in (
        {"running": True},
        {"waiting": ("ErrImagePull", "x")},
        {"deleting": True},
        {"phase": "Failed"},
        {"node": "", "unschedulable": "0/1 nodes are available"},
    ):
        world.pods[pod.uid] = replace(pod, **changes)
        assert names(world, 3) == {}, changes


def test_the_claim_of_a_pod_without_a_node_is_asked_about_too() -> None:
    world = started(Stage.PREPARE)
    claim = Claim("demo-workspace", "claim-1", UID, "1", deleting=False)
    pod = world.run_pod("demo-prepare-0", phase="Pending", running=False, node="")
    assert names(world, 3, claim) == {pod.uid: {pod.uid, "claim-1"}}
    world.pods[pod.uid] = replace(pod, unschedulable="pod has unbound immediate PersistentVolumeClaims")
    assert names(world, 3, claim) == {pod.uid: {"claim-1"}}
    world.pods[pod.uid] = replace(pod, node="node1")
    assert names(world, 3, claim) == {pod.uid: {pod.uid}}
