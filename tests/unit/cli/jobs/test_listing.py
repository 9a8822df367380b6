from __future__ import annotations

import json

import pytest
import yaml
from finetune_cli.__main__ import main
from finetune_cli.jobs.listing import table
from finetune_cli.jobs.summary import summary
from jsonschema import Draft202012Validator

from tests.support.cli_jobs import NOW, failed, succeeded, training
from tests.support.kubectl_program import KubectlProgram
from tests.support.repository import ROOT

CONTRACT = json.loads((ROOT / "contract" / "cli.schema.json").read_text("utf-8"))
SCHEMA = Draft202012Validator({**CONTRACT, "$ref": "#/$defs/list"})


def test_the_table_has_one_line_for_each_job() -> None:
    jobs = [summary(job) for job in (training(), succeeded("airports"))]
    assert table(jobs, NOW, wide=False, namespaces=False) == (
        "NAME          PHASE       STAGE   PROGRESS   MODEL           GPUS   VERDICT    AGE\n"
        "support-bot   Training    Train   40%        hf://org/base   1      -          30m00s\n"
        "airports      Succeeded   Merge   -          hf://org/base   1      Improved   30m00s\n"
    )


def test_the_wide_table_has_the_reason_and_all_namespaces_their_name() -> None:
    lines = table([summary(failed())], NOW, wide=True, namespaces=True).splitlines()
    assert lines[0].split() == [
        *("NAMESPACE", "NAME", "PHASE", "STAGE", "PROGRESS", "MODEL", "GPUS", "VERDICT", "AGE"),
        *("REASON", "LOSS", "GPU", "NODE", "QUEUE"),
    ]
    assert lines[1].startswith("team-a")
    assert "TooManyRowsRejected" in lines[1]


def test_json_and_yaml_follow_the_contract(
    cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(training())
    cluster.put(failed("other"))
    assert main(["list", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    SCHEMA.validate(found)
    assert main(["list", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == found
    assert [job["name"] for job in found["jobs"]] == ["other", "support-bot"]


def test_names_can_be_passed_to_kubectl(cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.put(training())
    cluster.put(failed("other"))
    assert main(["list", "-o", "name", "--phase", "Failed"]) == 0
    assert capsys.readouterr().out == "finetunejob.finetune.dev/other\n"


def test_the_selection_is_the_clusters(cluster: KubectlProgram, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "-A", "-l", "team=search", "-n", "x"]) == 0
    assert capsys.readouterr().err == "no FineTuneJobs found\n"
    arguments = cluster.calls[0]["arguments"]
    assert {"--all-namespaces", "--selector=team=search", "--namespace=x"} <= set(arguments)
