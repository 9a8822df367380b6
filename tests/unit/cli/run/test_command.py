from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode
from finetune_cli.run import command as run_command
from finetune_cli.run.local import LocalFolders


def test_run_has_the_documented_defaults() -> None:
    context = run_command.command.make_context("run", ["job.yaml"])
    assert (context.params["device"], context.params["name"], context.params["volume"]) == ("auto", None, ())
    assert (context.params["volumes"], context.params["runs"]) == (
        Path(".finetune/volumes"),
        Path(".finetune/runs"),
    )


def test_the_exit_code_is_the_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run_locally(
        _manifests: Any, folders: LocalFolders, device: str, processes: int, parallelism: str
    ) -> int:
        seen.append((folders, device, processes, parallelism))
        return 71

    monkeypatch.setattr(run_command, "run_locally", run_locally)
    job = tmp_path / "job.yaml"
    job.write_text(
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\nspec: {model: {}}\n",
        "utf-8",
    )
    options = [
        "--device",
        "cpu",
        "--processes",
        "2",
        "--parallelism",
        "FullyShard",
        "--volumes",
        str(tmp_path),
        "--volume",
        f"models={tmp_path}",
    ]
    assert main(["run", str(job), *options]) == 71
    assert seen[0][1:] == ("cpu", 2, "FullyShard")
    assert seen[0][0].claims == {"models": tmp_path}


def test_without_the_trainer_the_command_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_command, "trainer_is_installed", lambda: False)
    assert main(["run", str(tmp_path / "job.yaml")]) == ExitCode.USAGE
    assert "the trainer must be installed" in capsys.readouterr().err


def test_a_file_without_a_job_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("kind: ConfigMap\n", "utf-8")
    assert main(["run", str(tmp_path / "job.yaml")]) == ExitCode.USAGE
