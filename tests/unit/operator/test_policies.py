"""Retry, retention, progress reporting, planning, settings, transitions: one policy each."""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.reasons import ReasonClass, classify_trainer_reason
from finetune_operator.api.spec import FineTuneJobSpec, Lifecycle, spec_hash
from finetune_operator.api.stages import Stage
from finetune_operator.api.validation import check
from finetune_operator.errors import InvalidSpecError, SettingsError
from finetune_operator.lifecycle.retention import child_expiry, keeps_workspace
from finetune_operator.lifecycle.retry import backoff, delay_after
from finetune_operator.settings import load_settings, parse_settings
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status.events import transitions
from finetune_operator.status.reporting import starting, updated

from tests.support.operator import NOW, PREPARE, World, make_progress, make_spec


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


def test_a_reason_of_a_newer_trainer_is_judged_by_its_exit_code() -> None:
    assert classify_trainer_reason("Novel", 65) is ReasonClass.PERMANENT
    assert classify_trainer_reason("Novel", 69) is ReasonClass.RETRYABLE
    assert classify_trainer_reason("InternalError", 65) is ReasonClass.RETRYABLE


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


def test_open_values_are_chosen_with_a_reason_and_given_ones_are_kept() -> None:
    chosen = make_plan(FineTuneJobSpec.parse(make_spec()), "cuda")
    assert (chosen.micro_batch_size, chosen.gradient_checkpointing, chosen.epochs) == (1, True, 3.0)
    assert all(choice.reason for choice in chosen.choices)
    assert not make_plan(FineTuneJobSpec.parse(make_spec()), "cpu").gradient_checkpointing
    training = {"maximumSteps": 40, "microBatchSize": 4, "gradientCheckpointing": "Require"}
    given = make_plan(FineTuneJobSpec.parse(make_spec(training=training)), "cpu")
    assert (given.micro_batch_size, given.gradient_checkpointing, given.epochs) == (4, True, None)
    assert given.choices == ()


CLAIM = {"persistentVolumeClaim": {"claimName": "c"}}
CONFIG_MAP = {"configMap": {"name": "rows", "key": "train.jsonl"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": {"source": {}}},
            "exactly one of persistentVolumeClaim, huggingFace, s3, gcs and azure, found 0",
        ),
        (
            {"model": {"source": {"s3": {"uri": "s3://bucket"}}}},
            "model.source.s3.uri must be s3://BUCKET/KEY",
        ),
        ({"model": {"source": {"gcs": {"uri": "s3://bucket/a"}}}}, "must be gs://BUCKET/KEY"),
        ({"dataset": {"source": {"azure": {"uri": "az://a/b/c"}}}}, "must be az://ACCOUNT/CONTAINER/KEY"),
        (
            {"dataset": {"source": {"s3": {"uri": "s3://bucket/a", "endpoint": "https://u:p@host"}}}},
            "endpoint must be an http or https URL",
        ),
        (
            {"dataset": {"source": {"huggingFace": {"repository": "a", "path": "b", "configuration": "c"}}}},
            "path or configuration, found both",
        ),
        (
            {"dataset": {"source": {"huggingFace": {"repository": "a", "path": "../b"}}}},
            "dataset.source.huggingFace.path must be a relative path",
        ),
        ({"dataset": {"source": CONFIG_MAP, "format": "Text"}}, "plain text has no answers to learn"),
        ({"dataset": {"source": CONFIG_MAP, "thresholds": {"leaked": 1}}}, "dataset.thresholds.leaked"),
        ({"dataset": {"source": {}}}, "exactly one of configMap"),
        ({"dataset": {"source": CLAIM}}, "must name a file"),
        ({"training": {"epochs": 1, "maximumSteps": 2}}, "at most one of epochs and maximumSteps"),
        ({"training": {"microBatchSize": 5}}, "must divide"),
        ({"training": {"learningRate": 0}}, "spec.training.learningRate"),
        (
            {"output": {"destination": {"persistentVolumeClaim": {"claimName": "c", "path": "a/../b"}}}},
            "without '..'",
        ),
        (
            {"output": {"destination": {"persistentVolumeClaim": {"claimName": "c", "path": "/a"}}}},
            "relative path",
        ),
        ({"output": {"artifacts": ["Merged", "Merged"], "destination": CLAIM}}, "must not repeat"),
        ({"podTemplate": {"labels": {"finetune.dev/job": "x"}}}, "belong to the operator"),
        ({"model": {"source": CLAIM, "chatTemplateArguments": {"a b": 1}}}, "identifiers"),
        ({"model": {"source": CLAIM, "chatTemplateArguments": {"a": None}}}, "chatTemplateArguments.a"),
        ({"model": {"source": CLAIM, "chatTemplateArguments": {"a": []}}}, "chatTemplateArguments.a"),
        ({"resources": {"train": {"memory": "lots"}}}, "spec.resources.train.memory"),
        ({"unknown": 1}, "spec.unknown"),
    ],
)
def test_an_impossible_spec_is_refused_with_what_was_found(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        check("demo", FineTuneJobSpec.parse(make_spec(**changes)))
    assert words in str(caught.value)


def test_a_refused_uri_is_shown_without_what_could_be_secret() -> None:
    dataset = {"source": {"s3": {"uri": "https://key:S3CRET@bucket/a?X-Amz-Signature=S3CRET"}}}
    with pytest.raises(InvalidSpecError) as caught:
        check("demo", FineTuneJobSpec.parse(make_spec(dataset=dataset)))
    assert "S3CRET" not in str(caught.value)
    assert "bucket/a" in str(caught.value)


@pytest.mark.parametrize(
    ("member", "uri"),
    [
        ("s3", "s3://My_Bucket.1/a folder/b=c+d%20?.jsonl"),
        ("s3", "s3://abc/d"),
        ("gcs", "gs://my_bucket/a/b.parquet"),
        ("azure", "az://account1/$web/a"),
    ],
)
def test_what_stores_allow_in_names_is_accepted(member: str, uri: str) -> None:
    check("demo", FineTuneJobSpec.parse(make_spec(dataset={"source": {member: {"uri": uri}}})))


def test_a_name_too_long_for_its_children_is_refused() -> None:
    check("n" * 45, FineTuneJobSpec.parse(make_spec()))
    with pytest.raises(InvalidSpecError, match="45 characters, found 46"):
        check("n" * 46, FineTuneJobSpec.parse(make_spec()))


def test_the_spec_hash_names_what_determines_the_model() -> None:
    base = spec_hash(FineTuneJobSpec.parse(make_spec()))
    defaulted = make_spec(
        training={"seed": 42, "learningRate": 0.0002, "lora": {"dropout": 0}},
        dataset={**make_spec()["dataset"], "validation": {"fraction": 0.1}},
    )
    assert spec_hash(FineTuneJobSpec.parse(defaulted)) == base, "defaults written out change nothing"
    widened = make_spec(
        dataset={**make_spec()["dataset"], "format": "Auto", "thresholds": {"minimumRows": 50}}
    )
    assert spec_hash(FineTuneJobSpec.parse(widened)) == base, "so do those of fields that came later"
    held = make_spec(suspend=True, lifecycle={"retries": 7})
    assert spec_hash(FineTuneJobSpec.parse(held)) == base
    assert spec_hash(FineTuneJobSpec.parse(make_spec(training={"seed": 43}))) != base


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
