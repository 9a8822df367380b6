from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.errors import UsageError
from finetune_cli.logs.selection import Wanted, choose, containers_with_logs, pod_of

from tests.support.kept_jobs import job, pod


@pytest.mark.parametrize(
    ("stage", "attempt", "chosen"),
    [
        (None, None, Wanted("train", 1)),
        (None, 0, Wanted("train", 0)),
        ("prepare", None, Wanted("prepare", 0)),
        ("train", 1, Wanted("train", 1)),
    ],
)
def test_the_current_stage_and_its_last_attempt_are_the_default(
    stage: str | None, attempt: int | None, chosen: Wanted
) -> None:
    assert choose(job(), stage, attempt) == chosen


def test_a_stage_or_attempt_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(UsageError, match="found merge; begun are: prepare, train"):
        choose(job(), "merge", None)
    with pytest.raises(UsageError, match="at most 1 for train of numbers, found 2"):
        choose(job(), None, 2)
    with pytest.raises(UsageError, match="found none yet"):
        choose({"metadata": {"name": "numbers"}}, None, None)


def test_a_stage_that_waits_for_its_first_job_has_not_begun() -> None:
    given = job()
    del given["status"]["stage"]["startTime"]
    assert choose(given, None, None) == Wanted("train", 0)


def test_the_newest_pod_of_the_attempt_is_chosen() -> None:
    old, new = pod(), pod()
    new["metadata"] |= {"name": "newer", "creationTimestamp": "2026-01-02T00:00:00Z"}
    assert pod_of([old, new, pod("prepare", 0)], Wanted("train", 1)) is new
    assert pod_of([old], Wanted("train", 0)) is None


def test_containers_that_have_started_are_listed_in_their_order() -> None:
    running: dict[str, Any] = {"state": {"running": {}}}
    waiting: dict[str, Any] = {"state": {"waiting": {}}}
    ended: dict[str, Any] = {"state": {"terminated": {}}}
    given = pod(
        containerStatuses=[{"name": "mesh", **running}, {"name": "trainer", **running}],
        initContainerStatuses=[{"name": "merge", **ended}, {"name": "destination-probe", **waiting}],
    )
    assert containers_with_logs(given) == ["merge", "trainer"]
    assert containers_with_logs(pod()) == []
