"""Completion of commands, options and names of jobs: in shells, and in kubectl."""

from __future__ import annotations

import sys

import click
from click.shell_completion import ShellComplete, get_completion_class

from finetune_cli.app import finetune
from finetune_cli.errors import UsageError
from finetune_cli.options import Command, echo

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_FINETUNE_COMPLETE"
"""click reads it: the scripts set it to ask for candidates."""
_NO_FILES = ":4"
"""The directive for kubectl after the candidates: no file name is meant."""


@click.command(
    "completion",
    cls=Command,
    examples=(
        ('eval "$(finetune completion bash)"', "Complete in this bash."),
        ("finetune completion fish > ~/.config/fish/completions/finetune.fish", "Complete in every fish."),
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and names of jobs.

    `kubectl finetune` is completed by the program kubectl_complete-finetune, which is installed with the command.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"the shell must be one of {', '.join(SHELLS)}, found {shell!r}")
    echo(kind(finetune, {}, "finetune", VARIABLE).source() + "\n")


def kubectl_words() -> int:
    """Print the candidates for the last argument in the form that kubectl reads; kubectl passes the typed words."""
    *words, incomplete = sys.argv[1:] or [""]
    for item in ShellComplete(finetune, {}, "finetune", VARIABLE).get_completions(words, incomplete):
        echo(f"{item.value}\t{item.help}\n" if item.help else f"{item.value}\n")
    echo(f"{_NO_FILES}\n")
    return 0
