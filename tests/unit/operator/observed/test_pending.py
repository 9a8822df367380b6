from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.reasons import Reason
from finetune_operator.observed.observation import ChildJob, Pod
from finetune_operator.observed.pending import why_waiting

from tests.support.operator import NOW
from tests.support.world import started


def make_child() -> ChildJob:
    return started().children["demo-prepare-0"]


def make_pod(**changes: Any) -> Pod:
    return replace(started().run_pod("demo-prepare-0"), **changes)


@pytest.mark.parametrize(("seconds", "reported"), [(0, False), (29, False), (30, True), (95, True)])
def test_a_job_without_a_pod_is_reported_after_thirty_seconds(seconds: int, *, reported: bool) -> None:
    found = why_waiting(make_child(), (), {}, NOW + timedelta(seconds=seconds))
    assert (found is not None) == reported
    if found is not None:
        assert found.reason is Reason.CHILD_REFUSED
        # The message stays the same, so that the status is not written with each decision.
        assert found.message.startswith("Job demo-prepare-0 of 2026-11-24T09:00:00Z has no pod.")


def test_a_suspended_job_has_no_pod_on_purpose() -> None:
    suspended = replace(make_child(), suspended=True)
    assert why_waiting(suspended, (), {}, NOW + timedelta(hours=1)) is None


def test_a_resumed_job_has_as_much_time_for_its_pod_as_a_new_one() -> None:
    resumed = replace(make_child(), resumed=NOW + timedelta(hours=1))
    assert why_waiting(resumed, (), {}, NOW + timedelta(hours=1, seconds=29)) is None
    found = why_waiting(resumed, (), {}, NOW + timedelta(hours=1, seconds=30))
    assert found is not None
    assert found.message.startswith("Job demo-prepare-0 of 2026-11-24T10:00:00Z has no pod.")


def test_the_newest_pod_counts() -> None:
    stuck = make_pod(unschedulable="0/3 nodes are available")
    newer = make_pod(created=NOW + timedelta(seconds=5))
    assert why_waiting(make_child(), (newer, stuck), {}, NOW) is None
    found = why_waiting(make_child(), (newer, replace(stuck, created=NOW + timedelta(seconds=9))), {}, NOW)
    assert found is not None
    assert found.reason is Reason.UNSCHEDULABLE


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", "CrashLoopBackOff"])
def test_a_pod_that_is_starting_normally_is_not_stuck(reason: str) -> None:
    assert why_waiting(make_child(), (make_pod(waiting=(reason, "")),), {}, NOW) is None


@pytest.mark.parametrize("reason", ["Init:CrashLoopBackOff", "Init:ImagePullBackOff"])
def test_an_injected_container_that_cannot_start_makes_the_pod_stuck(reason: str) -> None:
    found = why_waiting(make_child(), (make_pod(waiting=(reason, "container proxy: back-off")),), {}, NOW)
    assert found is not None
    assert found.reason is Reason.POD_STUCK
    assert found.message.endswith(f"{reason}: container proxy: back-off")


def test_a_pod_without_its_image_is_stuck() -> None:
    found = why_waiting(make_child(), (make_pod(waiting=("ErrImagePull", "no such image")),), {}, NOW)
    assert found is not None
    assert found.reason is Reason.POD_STUCK
    assert found.message.endswith("ErrImagePull: no such image")


def test_a_cause_from_events_is_said_at_once_and_before_the_general_text() -> None:
    child = make_child()
    cause = 'FailedCreate: Error creating: pods "demo-prepare-0-abcde" is forbidden: exceeded quota: gpus'
    for seconds in (4, 95):
        found = why_waiting(child, (), {child.uid: cause}, NOW + timedelta(seconds=seconds))
        assert found is not None
        assert (found.reason, found.message) == (
            Reason.CHILD_REFUSED,
            f"Job demo-prepare-0 has no pod: {cause}",
        )


def test_a_pod_that_events_explain_is_stuck_until_it_runs() -> None:
    pod = make_pod(running=False, phase="Pending", waiting=("ContainerCreating", ""))
    warnings = {pod.uid: 'FailedMount: configmap "rows" not found'}
    found = why_waiting(make_child(), (pod,), warnings, NOW)
    assert found is not None
    assert found.reason is Reason.POD_STUCK
    assert found.message == f'pod {pod.name}: FailedMount: configmap "rows" not found'
    assert why_waiting(make_child(), (replace(pod, running=True),), warnings, NOW) is None


def test_the_schedulers_message_is_followed_by_that_of_the_claim() -> None:
    pod = make_pod(running=False, unschedulable="pod has unbound immediate PersistentVolumeClaims")
    found = why_waiting(make_child(), (pod,), {pod.uid: "ProvisioningFailed: no space"}, NOW)
    assert found is not None
    assert found.message.endswith("unbound immediate PersistentVolumeClaims; ProvisioningFailed: no space")
