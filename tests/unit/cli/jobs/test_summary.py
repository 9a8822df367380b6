from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_cli.jobs.summary import location, summary
from jsonschema import Draft202012Validator

from tests.support.cli_jobs import START, cli_job, failed, succeeded, training
from tests.support.crd_schema import root_schema, strict_json_schema
from tests.support.repository import ROOT

CONTRACT = json.loads((ROOT / "contract" / "cli.schema.json").read_text("utf-8"))
SCHEMA = Draft202012Validator({**CONTRACT, "$ref": "#/$defs/summary"})


@pytest.mark.parametrize("job", [cli_job(), training(), succeeded(), failed()])
def test_every_summary_follows_the_contract(job: dict[str, Any]) -> None:
    SCHEMA.validate(summary(job))


@pytest.mark.parametrize("job", [training(), succeeded(), failed()])
def test_the_jobs_of_these_tests_are_ones_that_the_crd_accepts(job: dict[str, Any]) -> None:
    for condition in job["status"]["conditions"]:
        condition |= {"lastTransitionTime": START, "observedGeneration": 1}
    for part in ("spec", "status"):
        schema = strict_json_schema(root_schema()["properties"][part])
        assert [error.message for error in Draft202012Validator(schema).iter_errors(job[part])] == []


def test_a_training_job_says_where_it_stands() -> None:
    found = summary(training())
    assert {
        name: found[name] for name in ("phase", "stage", "activity", "step", "totalSteps", "percent", "loss")
    } == {
        "phase": "Training",
        "stage": "Train",
        "activity": "Training",
        "step": 18,
        "totalSteps": 45,
        "percent": "40%",
        "loss": "1.2345",
    }


def test_progress_of_an_earlier_stage_is_not_that_of_the_current_one() -> None:
    job = training()
    job["status"]["stage"]["name"] = "Merge"
    assert summary(job)["step"] is None


def test_a_job_that_the_operator_has_not_seen_has_no_status() -> None:
    job = cli_job()
    del job["status"]
    assert summary(job)["phase"] is None


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"huggingFace": {"repository": "org/base"}}, "hf://org/base"),
        ({"s3": {"uri": "s3://bucket/key"}}, "s3://bucket/key"),
        ({"persistentVolumeClaim": {"claimName": "data"}}, "pvc://data"),
        ({"persistentVolumeClaim": {"claimName": "data", "path": "a/b"}}, "pvc://data/a/b"),
        ({"configMap": {"name": "rows", "key": "a.jsonl"}}, "configmap://rows/a.jsonl"),
        ({"url": {"secretKeyRef": {"name": "signed", "key": "url"}}}, "secret://signed/url"),
        ({}, None),
    ],
)
def test_every_source_has_one_line(source: dict[str, Any], text: str | None) -> None:
    assert location(source) == text
