"""From YAML to the trainer's run spec on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_cli.__main__ import EXIT_USAGE, main
from finetune_cli.local import LocalFolders, run_locally
from finetune_cli.manifests import read_manifests
from jsonschema import Draft202012Validator

REPOSITORY = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((REPOSITORY / "contract" / "run.schema.json").read_text("utf-8"))
JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny, namespace: team}
spec:
  model: {source: {persistentVolumeClaim: {claimName: assets, path: model}}}
  dataset: {source: {configMap: {name: data, key: rows.jsonl}}}
  output: {destination: {persistentVolumeClaim: {claimName: assets}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: data}
data: {rows.jsonl: "{}\\n"}
"""


def job_file(folder: Path, text: str = JOB) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_run_spec_of_the_contract_is_written_and_the_trainers_refusal_comes_back(tmp_path: Path) -> None:
    """The claim has no model: the real trainer says so, and its exit code is the command's."""
    (tmp_path / "volumes" / "assets").mkdir(parents=True)
    folders = LocalFolders(tmp_path / "volumes", {}, tmp_path / "runs")
    code = run_locally(read_manifests(job_file(tmp_path)), folders, "cpu")
    assert code == 65
    home = next((tmp_path / "runs").iterdir())
    run = json.loads((home / "run.json").read_text("utf-8"))
    Draft202012Validator(SCHEMA).validate(run)
    assert run["telemetry"]["host"] == "127.0.0.1"
    assert run["model"]["source"]["path"] == str(tmp_path / "volumes" / "assets" / "model")
    assert Path(run["dataset"]["source"]["path"]).read_text("utf-8") == "{}\n"


def test_a_claim_without_a_folder_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["run", str(job_file(tmp_path)), "--volumes", str(tmp_path), "--runs", str(tmp_path / "runs")]
    )
    assert code == EXIT_USAGE
    assert "--volume assets=FOLDER" in capsys.readouterr().err


def test_an_unknown_field_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = JOB.replace("spec:\n", "spec:\n  trainin: {epochs: 1}\n")
    assert main(["run", str(job_file(tmp_path, text))]) == EXIT_USAGE
    assert "trainin" in capsys.readouterr().err
