"""The commands of `finetune`. A command's module is imported only if the command runs, so that help appears at once."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from finetune_cli.errors import ClosedOutputError


@dataclass(frozen=True)
class Entry:
    """A command: the module and the name of its object, its line in the list of commands, and its section there."""

    place: str
    help: str
    section: str


_HERE, _JOBS, _OTHER = "Before a job", "Jobs of a cluster", "Other"
COMMANDS = {
    "create": Entry(
        "finetune_cli.create.command:create", "write the YAML of a job, or create the job", _HERE
    ),
    "validate": Entry(
        "finetune_cli.validate.command:validate",
        "check a job's YAML, also by the API server, and its first rows",
        _HERE,
    ),
    "plan": Entry("finetune_cli.plan.command:command", "check if a job fits, on which GPU, and why", _HERE),
    "run": Entry(
        "finetune_cli.run.command:command",
        "prepare, train and merge on this machine, without a cluster",
        _HERE,
    ),
    "list": Entry("finetune_cli.jobs.listing:list_jobs", "list jobs", _JOBS),
    "watch": Entry("finetune_cli.watch.command:watch", "follow jobs until they end", _JOBS),
    "logs": Entry(
        "finetune_cli.logs.command:command", "print the log of a stage, also long after its end", _JOBS
    ),
    "report": Entry(
        "finetune_cli.report.command:command", "print the report on a job, also long after its end", _JOBS
    ),
    "suspend": Entry(
        "finetune_cli.jobs.lifecycle:suspend", "stop a job and free its GPU; it can be resumed", _JOBS
    ),
    "resume": Entry("finetune_cli.jobs.lifecycle:resume", "continue a suspended job", _JOBS),
    "retry": Entry("finetune_cli.jobs.retry:retry", "create a failed job again under another name", _JOBS),
    "compare": Entry(
        "finetune_cli.compare.command:compare", "compare two jobs: specs, data, losses, time", _JOBS
    ),
    "cost": Entry(
        "finetune_cli.jobs.cost:cost", "estimated and measured GPU hours of jobs, and their cost", _JOBS
    ),
    "verify": Entry(
        "finetune_cli.verify_command:command",
        "compare published artifacts with their manifest and signature",
        _OTHER,
    ),
    "calibrate": Entry(
        "finetune_cli.calibrate:command", "fit the estimates to the measurements of finished runs", _OTHER
    ),
    "completion": Entry(
        "finetune_cli.completion:completion", "print the completion script of a shell", _OTHER
    ),
}


class Group(click.Group):
    """The group of all commands, in the order of COMMANDS."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        command.short_help = entry.help
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command. Raises UsageError, which proposes a similar name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            meant = f"; perhaps {near[0]}" if near else ""
            raise click.UsageError(
                f"COMMAND must be one of {', '.join(COMMANDS)}, found {args[0]!r}{meant}", ctx
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises ClosedOutputError if nobody reads the output any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ClosedOutputError from error

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section."""
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section]
                )


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="finetune", message="%(version)s")
def finetune(**_options: Any) -> None:
    """Fine-tune language models on Kubernetes.

    `finetune COMMAND --help` shows options and examples. As a plugin of kubectl, the same command is `kubectl finetune`.
    """
