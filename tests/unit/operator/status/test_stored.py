from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.status.stored import conditions_problem, status_problem

from tests.support.world import started


def running() -> dict[str, Any]:
    world = started(Stage.TRAIN)
    world.run_pod("demo-train-0")
    world.settle()
    return dict(world.job.status)


def test_an_empty_status_and_every_status_of_this_version_can_be_read() -> None:
    assert status_problem({}) is None
    assert status_problem(running()) is None
    assert conditions_problem(running()) is None


def test_members_that_nothing_reads_may_have_any_form() -> None:
    status = {**running(), "evaluation": ["other"], "artifacts": "none", "new": {"a": 1}, "phase": 7}
    assert status_problem(status) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage", "Train"),
        ("stage.name", "Evaluate"),
        ("stage.attempt", "zero"),
        ("stage.startTime", "yesterday"),
        ("startTime", 5),
        ("attempts", {"Train": 1}),
        ("waiting.since", "2026"),
        ("trainer.contractVersion", "next"),
        ("plan.training", {"microBatchSize": 4}),
        ("plan.ladder", [{"microBatchSize": "many", "gradientCheckpointing": True}]),
        ("plan.hosts", [{"memoryBytes": 1}]),
        ("model.config", "{"),
        ("model.config", "[]"),
        ("dataset.longestExample", "long"),
        ("progress.updateTime", 1),
    ],
)
def test_a_member_of_another_form_is_named(path: str, value: Any) -> None:
    status = running()
    *parents, last = path.split(".")
    parent = status
    for name in parents:
        parent[name] = dict(parent.get(name) or {})
        parent = parent[name]
    parent[last] = value
    found = status_problem(status)
    assert found is not None
    assert found.startswith(f"status.{path}")


def test_conditions_of_another_form_are_named() -> None:
    assert conditions_problem({"conditions": [{"type": "Succeeded"}]}) is not None
    assert conditions_problem({"conditions": {"Succeeded": "True"}}) is not None
