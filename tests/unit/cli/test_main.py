from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from finetune_cli.__main__ import main, program_name
from finetune_cli.app import COMMANDS
from finetune_cli.exit_codes import ExitCode

from tests.support.kubectl_program import KubectlProgram
from tests.support.repository import ROOT

MISTRAL = ROOT / "tests" / "support" / "configs" / "mistral-7b-instruct-v0.3.json"


def test_an_unknown_option_has_the_exit_code_of_a_wrong_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "--color"]) == ExitCode.USAGE
    assert "--color" in capsys.readouterr().err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_prints_its_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"Usage: finetune {command}" in printed
    assert "Examples:" in printed


def test_a_missing_command_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.USAGE
    assert "COMMAND" in capsys.readouterr().err


def test_a_misspelled_command_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wach", "job"]) == ExitCode.USAGE
    assert "perhaps watch" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("finetune")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('Error from server (NotFound): finetunejobs.finetune.dev "a" not found', ExitCode.NO_INPUT),
        ("Error from server (Forbidden): finetunejobs is forbidden: no", ExitCode.NO_PERMISSION),
        ("error: You must be logged in to the server (Unauthorized)", ExitCode.NO_PERMISSION),
        ('error: the server doesn\'t have a resource type "finetunejobs"', ExitCode.UNAVAILABLE),
        ("Unable to connect to the server: dial tcp: i/o timeout", ExitCode.UNAVAILABLE),
        ('The FineTuneJob "a" is invalid: spec.model: Required value', ExitCode.REJECTED),
        ("Error from server (AlreadyExists): finetunejobs already exists", ExitCode.EXISTS),
    ],
)
def test_each_kind_of_cluster_error_has_its_exit_code(
    cluster: KubectlProgram, message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.fail(message)
    assert main(["compare", "a", "b"]) == code
    assert capsys.readouterr().err.startswith("finetune: ")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/bin/finetune", "finetune"),
        ("/bin/kubectl-finetune", "kubectl finetune"),
        ("x/__main__.py", "finetune"),
    ],
)
def test_the_program_is_called_what_users_type(path: str, name: str) -> None:
    assert program_name(path) == name


def test_a_wrong_request_is_printed_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tmp_path / "absent.yaml")]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("finetune: ")


def test_a_closed_pipe_ends_the_program_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "finetune_cli", "plan", "--model", str(MISTRAL), "--gpu", "L4"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.BROKEN_PIPE, b"")


def test_help_is_printed_before_the_heavy_libraries_are_imported() -> None:
    code = "import sys; from finetune_cli.__main__ import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("pydantic", "rich", "yaml", "kubernetes", "finetune_operator.api"):
        assert f"'{heavy}'" not in done.stdout
