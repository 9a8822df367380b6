from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

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


PROGRAM = """#!/bin/sh
case "$_FINETUNE_COMPLETE$1" in
  *_complete*|completion) PATH={path} exec {python} -m finetune_cli "$@" ;;
  *) echo "ran: $*" ;;
esac
"""
"""`finetune` as far as it completes. Any other call prints its arguments."""
START = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(finetune completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$(finetune completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "finetune completion fish | source"),
}
PATIENCE_SECONDS = 120


@pytest.mark.full
@pytest.mark.parametrize("shell", SHELLS)
def test_the_tab_key_completes_a_command_and_a_job_in_the_real_shell(
    shell: str, cluster: KubectlProgram, tmp_path: Path
) -> None:
    cluster.put(cli_job("support-bot"))
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "finetune"
    program.write_text(PROGRAM.format(path=os.environ["PATH"], python=sys.executable), "utf-8")
    program.chmod(0o755)
    command, setup = START[shell]
    environment = {
        **os.environ,
        "PATH": f"{folder}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TERM": "vt100",
    }
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        # fish ends if the terminal does not control it.
        ["setsid", "--ctty", *command],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=environment,
    ) as process:
        os.close(inside)
        try:
            os.write(terminal, f"{setup}\n".encode())
            os.write(terminal, b"finetune wat\tsup\t\n")
            shown = read_until(terminal, b"ran: watch support-bot")
        finally:
            process.kill()
            os.close(terminal)
    assert b"ran: watch support-bot" in shown, shown.decode("utf-8", "replace")


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What the terminal shows until `wanted`, or until nothing comes any more."""
    shown, end = b"", time.monotonic() + PATIENCE_SECONDS
    while wanted not in shown and (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            shown += os.read(terminal, 4096)
    return shown
