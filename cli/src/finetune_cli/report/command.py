"""`finetune report JOB`: the report on a job as a page or as JSON, also long after its end."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from finetune_cli.cleaning import clean
from finetune_cli.cluster.client import Client
from finetune_cli.errors import UsageError
from finetune_cli.kept.cluster import pods_of
from finetune_cli.kept.options import reader_options
from finetune_cli.kept.reading import read_kept
from finetune_cli.options import FILE, Command, complete_job, echo
from finetune_cli.report.page import safe_page

DESCRIPTION = (
    "Print the report on a job: dataset, plan, memory, loss curves, evaluation, answers, timeline and logs. A short pod reads "
    "it from the workspace, or from the claim that the artifacts were published to. It needs the right to create and delete "
    "pods."
)


@click.command(
    "report",
    cls=Command,
    help=DESCRIPTION,
    examples=(
        ("finetune report support-bot --save report.html", "Save the page of a job."),
        ("finetune report support-bot -o json", "Print the same content for a program."),
    ),
)
@click.argument("job", metavar="JOB", shell_complete=complete_job)
@click.option(
    "-o", "--output", type=click.Choice(("html", "json")), default="html", show_default=True, help="Form."
)
@click.option(
    "--save",
    type=FILE,
    metavar="PATH",
    help="File to write (default: standard output, or JOB-report.html if that is a terminal).",
)
@reader_options
def command(
    client: Client, job: str, output: str, save: Path | None, image: str | None, timeout: int
) -> None:
    """Print or save the report. Raises UsageError that says what is missing."""
    found = client.get(job)
    pods = pods_of(client.kubectl, job)
    kept = read_kept(client.kubectl, found, [output], image=image, seconds=timeout, pods=pods)
    if kept.content is None:
        raise UsageError(
            f"the report of {job} must be kept, found {kept.error or 'none'}; a job has its first report when "
            "PREPARE has ended"
        )
    content = safe_page(kept.content) if output == "html" else kept.content
    if save is None and output == "html" and sys.stdout.isatty():
        save = Path(f"{job}-report.html")
    if save is None:
        text = content.decode("utf-8", "replace")
        # The files of a volume are not trusted: a terminal would obey their commands.
        echo((clean(text) if sys.stdout.isatty() else text) + "\n")
        return
    try:
        save.write_bytes(content + b"\n")
    except OSError as error:
        raise UsageError(
            f"--save must be a file that can be written, found {save}: {error.strerror}"
        ) from error
    echo(f"{save}\n")
