"""The reference of all commands as Markdown, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator

import click

from finetune_cli.app import COMMANDS, finetune
from finetune_cli.exit_codes import ExitCode
from finetune_cli.options import Command, wrapped


def reference() -> str:
    """Return docs/reference/cli.md without its first lines."""
    lines = ["`finetune` and `kubectl finetune` are the same command.", ""]
    lines += ["| command | purpose |", "|---|---|"]
    lines += [f"| [`{name}`](#finetune-{name}) | {entry.help} |" for name, entry in COMMANDS.items()]
    lines += ["", "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {int(code)} | {code.meaning} |" for code in ExitCode]
    lines += ["", "`finetune run` ends with the exit code of the trainer.", ""]
    for name in COMMANDS:
        lines += _section(name)
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str) -> Iterator[str]:
    context = click.Context(finetune, info_name="finetune", **finetune.context_settings)
    command = finetune.get_command(context, name)
    if command is None:
        raise ValueError(f"the command must exist, found no {name!r}; correct finetune_cli.app.COMMANDS")
    inner = click.Context(command, info_name=name, parent=context)
    yield from (f"## finetune {name}", "", "```", command.get_usage(inner), "```", "")
    for paragraph in (command.help or "").split("\n\n"):
        yield from (" ".join(paragraph.split()).replace(". ", ".\n"), "")
    # click makes a command's help option at its first use, from the context of that use.
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    yield from ("| option | meaning |", "|---|---|")
    for option in options:
        record = option.get_help_record(inner)
        if record is not None:
            yield f"| `{_cell(record[0])}` | {_cell(record[1])} |"
    yield f"| `{', '.join(inner.help_option_names)}` | Show this message and exit. |"
    yield ""
    if isinstance(command, Command):
        yield from ("```console", *_examples(command), "```", "")


def _examples(command: Command) -> Iterator[str]:
    for line, meaning in command.examples:
        yield f"# {meaning}"
        yield from wrapped(line)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
