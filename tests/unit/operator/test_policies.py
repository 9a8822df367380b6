"""Retry, retention, progress reporting, settings, transitions: one policy each."""

from __future__ import annotations

import copy
import json
from datetime import timedelta

import pytest
from finetune_operator.api.reasons import ReasonClass
from finetune_operator.api.spec import Lifecycle
from finetune_operator.api.stages import Stage
from finetune_operator.errors import SettingsError
from finetune_operator.lifecycle.retention import child_expiry, keeps_workspace
from finetune_operator.lifecycle.retry import backoff, delay_after
from finetune_operator.settings import load_settings, parse_settings
from finetune_operator.status.events import transitions
from finetune_operator.status.reporting import starting, updated

from tests.support.operator import NOW, PREPARE, World, make_progress


def test_backoff_doubles_from_ten_seconds_to_five_minutes() -> None:
    assert [backoff(count).total_seconds() for count in range(1, 8)] == [10, 20, 40, 80, 160, 300, 300]
    assert backoff(10**6) == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("kind", "failures", "interruptions", "retries", "ran", "seconds"),
    [
        (ReasonClass.PERMANENT, 1, 0, 5, 0, None),
        (ReasonClass.RETRYABLE, 1, 0, 0, 0, None),
        (ReasonClass.RETRYABLE, 1, 0, 2, 60, 10),
        (ReasonClass.RETRYABLE, 2, 9, 2, 0, 20),
        (ReasonClass.RETRYABLE, 3, 0, 2, 0, None),
        (ReasonClass.INTERRUPTED, 9, 1, 0, 0, 0),
        (ReasonClass.INTERRUPTED, 0, 2, 0, 4, 6),
        (ReasonClass.INTERRUPTED, 0, 9, 0, 60, 0),
        (ReasonClass.INTERRUPTED, 0, 15, 0, 60, 240),
    ],
)
def test_who_is_tried_again_and_when(
    kind: ReasonClass, failures: int, interruptions: int, retries: int, ran: int, seconds: float | None
) -> None:
    delay = delay_after(
        kind, failures=failures, interruptions=interruptions, retries=retries, ran=timedelta(seconds=ran)
    )
    assert (None if delay is None else delay.total_seconds()) == seconds


def test_children_expire_by_their_outcome() -> None:
    lifecycle = Lifecycle.model_validate({"keepChildrenSeconds": {"success": 5, "failure": 60}})
    ended = {"completionTime": "2026-11-24T09:00:00Z"}
    assert child_expiry({**ended, "outcome": "Succeeded"}, lifecycle, NOW) == NOW + timedelta(seconds=5)
    assert child_expiry({**ended, "outcome": "Failed"}, lifecycle, NOW) == NOW + timedelta(seconds=60)
    assert child_expiry(None, lifecycle, NOW) == NOW
    assert keeps_workspace(Lifecycle(), succeeded=False)
    assert not keeps_workspace(Lifecycle(), succeeded=True)


def test_progress_is_written_on_a_change_of_activity_on_a_percent_or_after_half_a_minute() -> None:
    shown = updated(
        starting(Stage.TRAIN, {}, NOW), make_progress(Stage.TRAIN, step=100, totalSteps=10000), NOW
    )
    assert (shown["percent"], shown["step"]) == ("1%", 100)
    soon, later = NOW + timedelta(seconds=10), NOW + timedelta(seconds=30)
    same = make_progress(Stage.TRAIN, step=150, totalSteps=10000)
    assert updated(shown, same, soon) == shown
    assert updated(shown, same, later)["step"] == 150
    assert updated(shown, make_progress(Stage.TRAIN, step=200, totalSteps=10000), soon)["percent"] == "2%"
    other = make_progress(Stage.TRAIN, activity="EvaluatingTuned", step=0, totalSteps=None, loss=None)
    changed = updated(shown, other, soon)
    assert changed["activity"] == "EvaluatingTuned"
    assert changed["loss"] == shown["loss"], "the last loss stays in view"
    assert "percent" not in changed
    unchanged = make_progress(Stage.TRAIN, step=100, totalSteps=10000)
    assert updated(shown, unchanged, later) == shown, "nothing new, nothing written"


def test_settings_have_defaults_for_all_but_the_image() -> None:
    settings = parse_settings('{"trainer": {"image": "i:1"}}')
    assert (settings.trainer.device, settings.workers, settings.client.qps) == ("cuda", 8, 50)
    assert settings.trainer.resources.of(Stage.TRAIN).memory is None, "it is computed"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "must be JSON"),
        ("{}", "trainer: Field required"),
        ('{"trainer": {"image": "i"}, "wokers": 3}', "wokers"),
        ('{"trainer": {"image": "i", "device": "tpu"}}', "trainer.device"),
        ('{"trainer": {"image": "i"}, "workers": 0}', "workers"),
    ],
)
def test_unusable_settings_say_what_is_wrong(content: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse_settings(content)


def test_a_missing_settings_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"/nowhere/settings\.json"):
        load_settings({"FINETUNE_OPERATOR_SETTINGS": "/nowhere/settings.json"})


def test_each_transition_is_told_once() -> None:
    world, told = World(), []
    for stage in Stage:
        for _ in range(3):
            before = world.job.status
            world.step()
            told += transitions(before, world.job.status)
        world.succeed(stage)
    before = world.job.status
    world.settle()
    told += transitions(before, world.job.status)
    assert [transition.reason for transition in told] == [
        "Pending",
        "StageSucceeded",
        "DatasetWarnings",
        "Training",
        "StageSucceeded",
        "Merging",
        "StageSucceeded",
        "Completed",
    ]
    warnings = [transition for transition in told if transition.type == "Warning"]
    assert [warning.reason for warning in warnings] == ["DatasetWarnings"]
    assert "RowsRefused" in warnings[0].message


def test_a_dataset_without_warnings_is_told_nothing_about() -> None:
    world = World()
    world.settle()
    prepare = copy.deepcopy(PREPARE)
    prepare["dataset"]["warnings"] = []
    before = world.job.status
    world.succeed(Stage.PREPARE, prepare=prepare)
    world.settle()
    assert "DatasetWarnings" not in {change.reason for change in transitions(before, world.job.status)}


def test_a_failure_is_told_as_a_warning_in_its_own_words() -> None:
    world = World()
    world.settle()
    world.fail(Stage.PREPARE, "InvalidDataset")
    before = world.job.status
    world.settle()
    (transition,) = transitions(before, world.job.status)
    assert (transition.type, transition.reason) == ("Warning", "InvalidDataset")
    assert json.dumps(transition.message) == '"must not be InvalidDataset"'
