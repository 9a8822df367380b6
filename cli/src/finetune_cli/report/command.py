"""`finetune report JOB`: the report on a job as a page or as JSON, also long after its end."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import click

from finetune_cli.errors import UsageError
from finetune_cli.kept.cluster import Cluster
from finetune_cli.kept.options import reader_options
from finetune_cli.kept.reading import read_kept
from finetune_cli.options import FILE, Command, complete_job

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
def command(**options: Any) -> int:
    """Print or save a report."""
    return report(SimpleNamespace(**options), sys.stdout)


def report(options: SimpleNamespace, output: TextIO) -> int:
    """Print or save the report; return 0. Raises UsageError that says what is missing."""
    cluster = Cluster(options.context, options.namespace, options.kubeconfig)
    job = cluster.job(options.job)
    pods = cluster.pods(options.job)
    kept = read_kept(cluster, job, [options.output], image=options.image, seconds=options.timeout, pods=pods)
    if kept.content is None:
        raise UsageError(
            f"the report of {options.job} must be kept, found {kept.error or 'none'}; a job has its first report when "
            "PREPARE has ended"
        )
    path = options.save
    if path is None and options.output == "html" and output.isatty():
        path = Path(f"{options.job}-report.html")
    if path is None:
        output.write(kept.content.decode("utf-8", "replace") + "\n")
        return 0
    try:
        path.write_bytes(kept.content + b"\n")
    except OSError as error:
        raise UsageError(
            f"--save must be a file that can be written, found {path}: {error.strerror}"
        ) from error
    output.write(f"{path}\n")
    return 0
