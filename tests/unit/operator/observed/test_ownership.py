from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import CONTROLLER_LABEL, JOB_LABEL, Stage
from finetune_operator.lifecycle.rehearsal import rehearsal_objects
from finetune_operator.observed.ownership import (
    attempt_of,
    controller_uid,
    former_job_uid,
    is_watched,
    run_uid,
)

from tests.support.operator import NOW, SETTINGS, UID, make_job, make_spec

OURS = {JOB_LABEL: "demo"}
LEFT = {**OURS, CONTROLLER_LABEL: "j"}


def test_only_the_controller_of_the_kind_counts_as_the_owner() -> None:
    references = [
        {"kind": "Job", "uid": "a"},
        {"kind": "Other", "uid": "b", "controller": True},
        {"kind": "Job", "uid": "c", "controller": True},
    ]
    assert controller_uid({"ownerReferences": references}, "Job") == "c"
    assert controller_uid({"ownerReferences": references[:2]}, "Job") is None
    assert controller_uid({}, "Job") is None


@pytest.mark.parametrize(
    ("metadata", "uid"),
    [
        ({"labels": LEFT}, "j"),
        ({"labels": LEFT, "ownerReferences": []}, "j"),
        ({"labels": OURS}, None),
        ({"labels": {CONTROLLER_LABEL: "j"}}, None),
        ({"labels": LEFT, "ownerReferences": [{"kind": "Other", "uid": "x"}]}, None),
        ({}, None),
    ],
)
def test_a_pod_that_its_deleted_job_left_behind_is_known_by_its_labels(
    metadata: dict[str, Any], uid: str | None
) -> None:
    assert former_job_uid(metadata) == uid


def test_an_attempt_is_read_from_the_name_before_the_labels() -> None:
    labels = {"finetune.dev/stage": "merge", "finetune.dev/attempt": "5"}
    assert attempt_of({"name": "demo-train-2", "labels": labels}) == (Stage.TRAIN, 2)
    assert attempt_of({"name": "other", "labels": labels}) == (Stage.MERGE, 5)
    assert attempt_of({"name": "other"}) is None


def test_an_object_is_watched_if_it_has_the_label_whatever_its_value() -> None:
    assert is_watched({"labels": {JOB_LABEL: "another"}})
    assert not is_watched({"labels": {"app": "x"}})
    assert not is_watched({})


def test_a_pod_of_the_operator_names_its_job_in_the_run_spec() -> None:
    forged = {"chatTemplateArguments": {"a": '"job":{"name":"x","namespace":"y","uid":"z"}'}}
    spec = make_spec()
    spec["model"] |= forged
    objects = rehearsal_objects(make_job(spec), FineTuneJobSpec.parse(spec), SETTINGS, NOW)
    found = [run_uid(body["spec"]["template"]["metadata"]) for body in objects if body["kind"] == "Job"]
    assert found == [UID] * 3
    assert run_uid({"labels": {JOB_LABEL: "demo"}}) == ""
