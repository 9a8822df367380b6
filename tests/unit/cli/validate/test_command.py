from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode
from jsonschema import Draft202012Validator

from tests.support.cli_jobs import cli_job
from tests.support.kubectl_program import KubectlProgram
from tests.support.repository import ROOT

CONTRACT = json.loads((ROOT / "contract" / "cli.schema.json").read_text("utf-8"))
SCHEMA = Draft202012Validator({**CONTRACT, "$ref": "#/$defs/validation"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    job = cli_job()
    del job["status"]
    path.write_text(yaml.safe_dump(job), "utf-8")
    return path


def test_every_check_has_a_line(
    cluster: KubectlProgram, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(file)]) == ExitCode.SUCCESS
    assert capsys.readouterr().out == (
        "spec    passed   the operator accepts the spec\n"
        "server  passed   the API server accepts the job\n"
        "rows    skipped  pass --tokenizer FOLDER, a folder with the model's tokenizer\n"
    )
    assert json.loads(cluster.calls[0]["stdin"])["metadata"]["namespace"] == "team-a"


def test_a_finding_fails_the_command_and_all_findings_are_said(
    cluster: KubectlProgram, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text("utf-8").replace("dataset:", "training: {sede: 1}\n  dataset:"), "utf-8")
    cluster.fail('Error from server (Invalid): strict decoding error: unknown field "spec.training.sede"')
    assert main(["validate", str(file), "-o", "json"]) == ExitCode.FAILED
    found = json.loads(capsys.readouterr().out)
    SCHEMA.validate(found)
    assert [(item["name"], item["status"]) for item in found["checks"]] == [
        ("Spec", "Failed"),
        ("Server", "Failed"),
    ]


def test_offline_asks_no_api_server(
    cluster: KubectlProgram, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(file), "--offline"]) == ExitCode.SUCCESS
    assert "server  skipped  --offline" in capsys.readouterr().out
    assert cluster.calls == []


def test_a_cluster_that_does_not_respond_is_no_finding(cluster: KubectlProgram, file: Path) -> None:
    cluster.fail("Unable to connect to the server: EOF")
    assert main(["validate", str(file)]) == ExitCode.UNAVAILABLE
