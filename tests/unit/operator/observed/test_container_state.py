from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from finetune_operator.api.formats import parse_time
from finetune_operator.observed.observation import Pod
from finetune_operator.observed.projection import project_pod

CREATED = "2026-11-24T09:00:00Z"
WAITS = {"waiting": {"reason": "PodInitializing"}}
RUNS: dict[str, Any] = {"running": {"startedAt": CREATED}}


def ended(code: int) -> dict[str, Any]:
    return {
        "terminated": {"exitCode": code, "reason": "Error", "message": f"code {code}", "finishedAt": CREATED}
    }


def pod(trainer: dict[str, Any], **steps: dict[str, Any]) -> Pod:
    body = {
        "metadata": {
            "name": "p",
            "namespace": "team",
            "uid": "u",
            "resourceVersion": "7",
            "creationTimestamp": CREATED,
            "labels": {"finetune.dev/job": "demo"},
            "ownerReferences": [{"kind": "Job", "uid": "j", "controller": True}],
        },
        "status": {
            "initContainerStatuses": [{"name": name, "state": state} for name, state in steps.items()],
            "containerStatuses": [{"name": "trainer", "state": trainer}],
        },
    }
    found = project_pod(body)
    assert found is not None
    return found


def test_a_running_merge_counts_as_running_and_not_as_waiting() -> None:
    found = pod(WAITS, merge=RUNS)
    assert (found.running, found.waiting, found.end, found.idle) == (True, None, None, False)


@pytest.mark.parametrize("name", ["merge", "destination-probe"])
def test_a_failed_step_is_the_end_of_the_attempt(name: str) -> None:
    found = pod(WAITS, **{name: ended(65)})
    assert found.end is not None
    assert (found.end.exit_code, found.end.message, found.idle) == (65, "code 65", True)


def test_after_a_step_that_succeeded_the_trainer_decides() -> None:
    assert pod(WAITS, merge=ended(0)).end is None
    assert not pod(WAITS, merge=ended(0)).running
    assert pod(RUNS, merge=ended(0)).running
    found = pod(ended(69), merge=ended(0))
    assert found.end is not None
    assert found.end.exit_code == 69


def test_an_injected_container_that_fails_is_not_the_trainers_end() -> None:
    assert pod(WAITS, sidecar=ended(1)).end is None
    assert not pod(WAITS, sidecar=RUNS).running


@pytest.mark.parametrize(
    ("state", "started"),
    [
        (RUNS, parse_time(CREATED)),
        ({"terminated": {"exitCode": 0, "startedAt": CREATED, "finishedAt": CREATED}}, parse_time(CREATED)),
        ({"terminated": {"exitCode": 137, "startedAt": "1970-01-01T00:00:00Z"}}, None),
        ({"terminated": {"exitCode": 128, "startedAt": None}}, None),
        (WAITS, None),
        ({}, None),
    ],
)
def test_a_trainer_has_started_when_the_kubelet_says_so(
    state: dict[str, Any], started: datetime | None
) -> None:
    assert pod(state).started == started
