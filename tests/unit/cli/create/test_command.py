from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode

from tests.support.kubectl_program import KubectlProgram

PLACES = ("--model", "org/base", "--dataset", "pvc://data/rows.jsonl", "--destination", "pvc://models")


def test_flags_become_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--epochs",
        "2",
        "--learning-rate",
        "0.00001",
        "--rank",
        "8",
        "--gpus",
        "1",
        "--maximum-length",
        "1024",
    )
    more = (
        "--queue",
        "123",
        "--label",
        "team=search",
        "--set",
        "training.packing=Never",
        "--suspend",
        "-n",
        "team-a",
    )
    assert main(["create", "bot", *PLACES, *options, *more]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "bot", "labels": {"team": "search"}, "namespace": "team-a"},
        "spec": {
            "model": {"source": {"huggingFace": {"repository": "org/base"}}},
            "dataset": {"source": {"persistentVolumeClaim": {"claimName": "data", "path": "rows.jsonl"}}},
            "output": {"destination": {"persistentVolumeClaim": {"claimName": "models"}}},
            "training": {
                "epochs": 2.0,
                "learningRate": 1e-05,
                "maximumLength": 1024,
                "lora": {"rank": 8},
                "packing": "Never",
            },
            "resources": {"gpus": 1},
            "queueName": "123",
            "suspend": True,
        },
    }


def test_the_largest_number_of_gpus_may_be_given_instead_of_the_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["create", "bot", *PLACES, "--maximum-gpus", "8"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["spec"]["resources"] == {"maximumGpus": 8}
    assert main(["create", "bot", *PLACES, "--maximum-gpus", "8", "--gpus", "2"]) != 0
    assert "at most one of gpus and maximumGpus, found 2 and 8" in capsys.readouterr().err


def test_the_yaml_is_a_file_that_other_commands_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", "bot", *PLACES, "--learning-rate", "2e-4"]) == 0
    file = tmp_path / "job.yaml"
    file.write_text(capsys.readouterr().out, "utf-8")
    assert main(["validate", str(file), "--offline", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True


def test_the_operators_rules_hold_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("--set", "training.microBatchSize=3", "--set", "training.effectiveBatchSize=16")
    assert main(["create", "bot", *PLACES, *wrong]) == ExitCode.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "microBatchSize" in printed.err


def test_an_unknown_field_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "bot", *PLACES, "--set", "training.sede=1"]) == ExitCode.USAGE
    assert "sede" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "dry", "text"),
    [
        (("--apply",), False, "finetunejob.finetune.dev/bot created\n"),
        (("--apply", "-o", "name"), False, "finetunejob.finetune.dev/bot\n"),
        (("--dry-run", "-o", "name"), True, "finetunejob.finetune.dev/bot\n"),
        (("--apply", "--dry-run", "-o", "name"), True, "finetunejob.finetune.dev/bot\n"),
    ],
)
def test_apply_creates_the_job_and_a_dry_run_only_checks_it(
    cluster: KubectlProgram,
    *,
    options: tuple[str, ...],
    dry: bool,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["create", "bot", *PLACES, *options]) == 0
    assert capsys.readouterr().out == text
    assert ["--dry-run=server" in call["arguments"] for call in cluster.calls] == [dry]
    assert json.loads(cluster.calls[0]["stdin"])["metadata"]["name"] == "bot"


def test_a_job_that_exists_is_not_changed(cluster: KubectlProgram) -> None:
    cluster.fail('Error from server (AlreadyExists): finetunejobs.finetune.dev "bot" already exists')
    assert main(["create", "bot", *PLACES, "--apply"]) == ExitCode.EXISTS
