from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_cli.__main__ import EXIT_BROKEN_PIPE, EXIT_USAGE, build_parser, main

from tests.support.repository import ROOT

MISTRAL = ROOT / "tests" / "support" / "configs" / "mistral-7b-instruct-v0.3.json"


def test_an_unknown_option_has_the_exit_code_of_a_wrong_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--color"])
    assert ended.value.code == EXIT_USAGE
    assert "--color" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "plan", "calibrate"])
def test_every_command_prints_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: finetune {command}" in capsys.readouterr().out


def test_a_missing_command_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == EXIT_USAGE
    assert "COMMAND" in capsys.readouterr().err


def test_a_wrong_request_is_printed_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tmp_path / "absent.yaml")]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith("finetune: ")


def test_run_has_the_documented_defaults() -> None:
    options = build_parser().parse_args(["run", "job.yaml"])
    assert (options.device, options.name, options.volume) == ("auto", None, [])
    assert (options.volumes, options.runs) == (Path(".finetune/volumes"), Path(".finetune/runs"))


def test_a_closed_pipe_ends_the_program_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "finetune_cli", "plan", "--model", str(MISTRAL), "--gpu", "L4"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (EXIT_BROKEN_PIPE, b"")
