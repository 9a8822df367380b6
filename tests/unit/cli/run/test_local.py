from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_cli.__main__ import main
from finetune_cli.errors import UsageError
from finetune_cli.exit_codes import ExitCode
from finetune_cli.manifests import read_manifests
from finetune_cli.run.local import (
    LocalFolders,
    choose_ranks,
    local_paths,
    rate_of,
    run_locally,
    secret_environment,
)
from finetune_operator.api.spec import FineTuneJobSpec
from jsonschema import Draft202012Validator

from tests.support.repository import ROOT

SCHEMA = json.loads((ROOT / "contract" / "run.schema.json").read_text("utf-8"))
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


@pytest.mark.slow
def test_a_valid_run_spec_is_written_and_the_trainers_exit_code_returned(tmp_path: Path) -> None:
    """The claim has no model, so the real trainer fails with exit code 65."""
    (tmp_path / "volumes" / "assets").mkdir(parents=True)
    folders = LocalFolders(tmp_path / "volumes", {}, tmp_path / "runs")
    code = run_locally(read_manifests(job_file(tmp_path)), folders, "cpu", 2, "FullyShard")
    assert code == 65
    home = next((tmp_path / "runs").iterdir())
    run = json.loads((home / "run.json").read_text("utf-8"))
    Draft202012Validator(SCHEMA).validate(run)
    assert run["telemetry"]["host"] == "127.0.0.1"
    assert run["training"]["parallelism"] == "FullyShard"
    assert run["model"]["source"]["path"] == str(tmp_path / "volumes" / "assets" / "model")
    assert Path(run["dataset"]["source"]["path"]).read_text("utf-8") == "{}\n"


@pytest.mark.slow
def test_another_gate_keeps_the_workspace_of_the_same_model(tmp_path: Path) -> None:
    """So a withheld model is published without a second training."""
    (tmp_path / "volumes" / "assets").mkdir(parents=True)
    folders = LocalFolders(tmp_path / "volumes", {}, tmp_path / "runs")
    for gate in ("WithholdIfWorse", "Report"):
        text = JOB.replace("spec:\n", f"spec:\n  evaluation: {{gate: {gate}}}\n")
        run_locally(read_manifests(job_file(tmp_path, text)), folders, "cpu")
        (home,) = (tmp_path / "runs").iterdir()
        run = json.loads((home / "run.json").read_text("utf-8"))
        assert run["evaluation"].get("gate", "Report") == gate


def test_more_processes_than_rows_of_a_step_are_refused_before_any_starts(tmp_path: Path) -> None:
    (tmp_path / "volumes" / "assets").mkdir(parents=True)
    folders = LocalFolders(tmp_path / "volumes", {}, tmp_path / "runs")
    with pytest.raises(UsageError, match=r"at most training.effectiveBatchSize \(16\).*found 17"):
        run_locally(read_manifests(job_file(tmp_path)), folders, "cpu", 17)
    assert not (tmp_path / "runs").exists()


def test_one_process_has_nobody_to_share_weights_with(tmp_path: Path) -> None:
    (tmp_path / "volumes" / "assets").mkdir(parents=True)
    folders = LocalFolders(tmp_path / "volumes", {}, tmp_path / "runs")
    with pytest.raises(UsageError, match="FullyShard needs --processes of at least 2, found 1"):
        run_locally(read_manifests(job_file(tmp_path)), folders, "cpu", 1, "FullyShard")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("device", "given", "found"),
    [
        ("cuda", (None, None), (4, "FullyShard")),
        ("cuda", (2, None), (2, "FullyShard")),
        ("cuda", (1, None), (1, "DataParallel")),
        ("cuda", (None, "DataParallel"), (4, "DataParallel")),
        ("cpu", (None, None), (1, "DataParallel")),
        ("cpu", (2, None), (2, "FullyShard")),
    ],
)
def test_the_spec_gives_the_processes_that_the_command_leaves_open(
    device: Any, given: tuple[Any, Any], found: tuple[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = FineTuneJobSpec.parse(
        {
            **next(yaml.safe_load_all(JOB))["spec"],
            "resources": {"gpus": 4},
            "training": {"parallelism": "FullyShard"},
        }
    )
    assert choose_ranks(spec, device, *given) == found
    ignored = device == "cpu" and given[0] is None
    assert ("one process for resources.gpus 4" in capsys.readouterr().err) == ignored


def test_a_job_with_one_gpu_runs_in_one_process_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    spec = FineTuneJobSpec.parse(next(yaml.safe_load_all(JOB))["spec"])
    for device in ("cuda", "cpu"):
        assert choose_ranks(spec, device, None, None) == (1, "DataParallel")
    assert capsys.readouterr().err == ""


def test_the_learning_rate_follows_from_what_prepare_reports() -> None:
    spec = FineTuneJobSpec.parse(next(yaml.safe_load_all(JOB))["spec"])
    config = json.loads((ROOT / "tests/support/configs/mistral-7b-instruct-v0.3.json").read_text("utf-8"))
    prepared = {"model": {"config": config}, "dataset": {"trainingExamples": 3000}}
    found = rate_of(spec, prepared)
    assert (found.value, "564 steps" in (found.reason or "")) == (0.00011, True)
    unknown = rate_of(spec, {**prepared, "model": {"config": {"model_type": "new"}}})
    assert (unknown.value, "provisional" in (unknown.reason or "")) == (0.0002, True)


def test_a_claim_without_a_folder_is_rejected_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["run", str(job_file(tmp_path)), "--volumes", str(tmp_path), "--runs", str(tmp_path / "runs")]
    )
    assert code == ExitCode.USAGE
    assert "--volume assets=FOLDER" in capsys.readouterr().err


def test_an_unknown_field_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = JOB.replace("spec:\n", "spec:\n  trainin: {epochs: 1}\n")
    assert main(["run", str(job_file(tmp_path, text))]) == ExitCode.USAGE
    assert "trainin" in capsys.readouterr().err


STORES = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny, namespace: team}
spec:
  model: {source: {huggingFace: {repository: org/name, tokenSecretRef: {name: hub, key: token}}}}
  dataset:
    source: {s3: {uri: "s3://bucket/rows.jsonl", secretRef: {name: store}}}
    validation: {source: {url: {secretKeyRef: {name: link, key: url}}}}
    targetPrompts: {configMapKeyRef: {name: production, key: prompts.txt}}
  output: {destination: {persistentVolumeClaim: {claimName: assets}}}
  modelCache: {claimName: bases}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: production}
data: {prompts.txt: "How do I?\\n"}
"""
SECRETS = """
---
apiVersion: v1
kind: Secret
metadata: {name: store}
stringData: {AWS_ACCESS_KEY_ID: a, AWS_SECRET_ACCESS_KEY: b}
---
apiVersion: v1
kind: Secret
metadata: {name: hub}
stringData: {token: t}
---
apiVersion: v1
kind: Secret
metadata: {name: link}
stringData: {url: "https://example.com/a?sig=s"}
"""
VARIABLES = {
    "FINETUNE_DATASET_AWS_ACCESS_KEY_ID": "a",
    "FINETUNE_DATASET_AWS_SECRET_ACCESS_KEY": "b",
    "FINETUNE_MODEL_TOKEN": "t",
    "FINETUNE_VALIDATION_URL": "https://example.com/a?sig=s",
}


def secrets(folder: Path, text: str, environment: dict[str, str]) -> dict[str, str]:
    manifests = read_manifests(job_file(folder, text))
    return secret_environment(manifests, FineTuneJobSpec.parse(manifests.spec), environment)


def test_secrets_of_the_file_become_the_variables_of_a_pod(tmp_path: Path) -> None:
    assert secrets(tmp_path, STORES + SECRETS, {"PATH": "/bin"}) == VARIABLES


def test_secrets_may_come_from_the_environment_but_the_file_has_priority(tmp_path: Path) -> None:
    assert secrets(tmp_path, STORES, VARIABLES) == {}
    other = dict.fromkeys(VARIABLES, "other")
    assert secrets(tmp_path, STORES + SECRETS, other) == VARIABLES


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("FINETUNE_MODEL_TOKEN", "found none; or set the environment variable FINETUNE_MODEL_TOKEN"),
        (
            "FINETUNE_DATASET_",
            "Secret 'store' must be in the same file, or its keys in environment variables",
        ),
    ],
)
def test_a_missing_secret_is_named_with_its_variable(tmp_path: Path, missing: str, words: str) -> None:
    given = {name: value for name, value in VARIABLES.items() if not name.startswith(missing)}
    with pytest.raises(UsageError, match=words):
        secrets(tmp_path, STORES, given)


def test_model_caches_are_folders_and_prompts_are_files(tmp_path: Path) -> None:
    for claim in ("assets", "bases"):
        (tmp_path / "volumes" / claim).mkdir(parents=True)
    folders = LocalFolders(tmp_path / "volumes", {}, tmp_path / "runs")
    manifests = read_manifests(job_file(tmp_path, STORES + SECRETS))
    spec = FineTuneJobSpec.parse(manifests.spec)
    found = local_paths(manifests, spec, folders, tmp_path / "home")
    assert found.model_cache == str(tmp_path / "volumes" / "bases")
    assert found.target_prompts is not None
    assert Path(found.target_prompts).read_text("utf-8") == "How do I?\n"
    assert (found.model, found.dataset, found.validation) == (None, None, None)


def test_destinations_become_folders_and_environment_variables(tmp_path: Path) -> None:
    output = """output:
    destinations:
      - {name: claim, persistentVolumeClaim: {claimName: assets, path: a/b}}
      - {name: bucket, s3: {uri: "s3://models/bot", secretRef: {name: store}}}"""
    text = JOB.replace("output: {destination: {persistentVolumeClaim: {claimName: assets}}}", output)
    text += (
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: store}\nstringData: {AWS_ACCESS_KEY_ID: id}\n"
    )
    manifests = read_manifests(job_file(tmp_path, text))
    (tmp_path / "volumes" / "assets").mkdir(parents=True)
    folders = LocalFolders(tmp_path / "volumes", {}, tmp_path / "runs")
    spec = FineTuneJobSpec.parse(manifests.spec)
    paths = local_paths(manifests, spec, folders, tmp_path / "home")
    folder = tmp_path / "volumes" / "assets" / "a" / "b"
    assert paths.destinations == {"claim": (str(folder), folder.as_uri())}
    assert paths.output == str(tmp_path / "home" / "workspace" / "artifacts")
    assert paths.output_uri == folder.as_uri(), "the first destination stands for all"
    assert secret_environment(manifests, spec, {}) == {"FINETUNE_DESTINATION_BUCKET_AWS_ACCESS_KEY_ID": "id"}


SIGNED = JOB.replace("output: {", "output: {signing: {keySecretRef: {name: signer, key: key.pem}}, ")
SIGNER = """
---
apiVersion: v1
kind: Secret
metadata: {name: signer}
stringData: {key.pem: PEM}
"""


def signing_key(folder: Path, text: str) -> str | None:
    (folder / "volumes" / "assets").mkdir(parents=True, exist_ok=True)
    manifests = read_manifests(job_file(folder, text))
    folders = LocalFolders(folder / "volumes", {}, folder / "runs")
    return local_paths(manifests, FineTuneJobSpec.parse(manifests.spec), folders, folder / "home").signing_key


def test_a_signing_key_of_the_file_is_written_for_this_user_alone(tmp_path: Path) -> None:
    for _run in range(2):
        path = signing_key(tmp_path, SIGNED + SIGNER)
        assert path is not None
        assert Path(path).read_text() == "PEM"
        assert Path(path).stat().st_mode & 0o777 == 0o600
    assert signing_key(tmp_path, JOB) is None


def test_a_signing_key_may_be_a_file_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="FINETUNE_SIGNING_KEY_FILE"):
        signing_key(tmp_path, SIGNED)
    monkeypatch.setenv("FINETUNE_SIGNING_KEY_FILE", str(tmp_path / "mine.pem"))
    assert signing_key(tmp_path, SIGNED) == str(tmp_path / "mine.pem")
    assert signing_key(tmp_path, SIGNED + SIGNER) != str(tmp_path / "mine.pem"), "the file has priority"
