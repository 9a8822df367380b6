from __future__ import annotations

import os
import subprocess
import sys

import pytest
from finetune_cli.__main__ import main
from finetune_cli.completion import SHELLS, kubectl_words

from tests.support.cli_jobs import cli_job
from tests.support.kubectl_program import KubectlProgram


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_that_asks_the_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert f"_FINETUNE_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ("finetune wat", ["watch"]),
        ("finetune list --phase Fa", ["Failed"]),
        ("finetune watch sup", ["support-bot"]),
    ],
)
def test_the_shells_get_commands_values_and_names_of_jobs(
    words: str, candidates: list[str], cluster: KubectlProgram
) -> None:
    cluster.put(cli_job("support-bot"))
    environment = {
        **os.environ,
        "_FINETUNE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "finetune_cli"], env=environment, capture_output=True, text=True, check=True
    )
    assert [line.partition(",")[2] for line in done.stdout.split()] == candidates


def test_kubectl_gets_candidates_and_the_directive_against_file_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-finetune", "ret"])
    assert kubectl_words() == 0
    assert [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["retry", ":4"]
