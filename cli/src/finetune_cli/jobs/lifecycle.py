"""`finetune suspend` and `finetune resume`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from finetune_cli.cluster.client import Client, has_ended
from finetune_cli.errors import UsageError
from finetune_cli.options import Command, cluster_options, complete_job, echo, output_option
from finetune_cli.text import print_document


def _command(
    name: str, text: str, done: str, example: str, *, suspended: bool
) -> Callable[[], click.Command]:
    """Return a command that sets `spec.suspend`."""

    @click.command(name, cls=Command, help=text, examples=((f"finetune {name} support-bot", example),))
    @click.argument("names", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_job)
    @output_option("name", "json", "yaml")
    @cluster_options
    def change(client: Client, names: Sequence[str], output: str | None) -> None:
        for job_name in names:
            if has_ended(client.get(job_name)):
                raise UsageError(f"FineTuneJob {job_name} must not have ended, but it has")
        for job_name in names:
            _print(client.suspend(job_name, suspended=suspended), done, output)

    return change


def _print(job: Any, done: str, output: str | None) -> None:
    if output in {"json", "yaml"}:
        print_document(job, output)
    else:
        echo(f"finetunejob.finetune.dev/{job['metadata']['name']}{'' if output == 'name' else f' {done}'}\n")


suspend = _command(
    "suspend",
    "Stop jobs and free their GPUs.\n\nTRAIN saves a checkpoint first, and `finetune resume` continues from it.",
    "suspended",
    "Free the GPU of a job.",
    suspended=True,
)
resume = _command(
    "resume",
    "Continue suspended jobs from their last checkpoint.",
    "resumed",
    "Continue a job.",
    suspended=False,
)
