"""`finetune validate`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from finetune_cli.cluster.client import Client
from finetune_cli.exit_codes import ExitCode
from finetune_cli.manifests import read_manifests
from finetune_cli.options import FILE, Command, cluster_options, echo, output_option, volume_options
from finetune_cli.run.local import LocalFolders
from finetune_cli.text import PLAIN_WIDTH, print_document, printable
from finetune_cli.validate.checks import Check, check_rows, check_server, check_spec

_SHOWN_ROWS = 5


@click.command(
    "validate",
    cls=Command,
    examples=(
        ("finetune validate job.yaml", "Would the cluster accept the job?"),
        (
            "finetune validate job.yaml --offline --data rows.jsonl --tokenizer ./Mistral-7B-Instruct-v0.3",
            "Would the trainer accept the first rows? This needs no cluster.",
        ),
    ),
)
@click.argument("file", type=FILE)
@click.option("--name", help="Name of the FineTuneJob, if the file has several.")
@click.option("--offline", is_flag=True, help="Do not ask the API server.")
@click.option(
    "--data", type=FILE, metavar="FILE", help="File with rows; by default that of the job, if it is here."
)
@click.option(
    "--tokenizer",
    type=FILE,
    metavar="FOLDER",
    help="Folder with the tokenizer; by default that of the job, if it is here.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="NUMBER",
    help="First rows to prove.",
)
@volume_options
@output_option("json", "yaml")
@cluster_options
def validate(
    client: Client,
    file: Path,
    name: str | None,
    *,
    offline: bool,
    data: Path | None,
    tokenizer: Path | None,
    rows: int,
    volumes: Path,
    volume: Sequence[tuple[str, Path]],
    output: str | None,
) -> ExitCode:
    """Check a FineTuneJob before it is applied.

    The operator's own rules check the spec. The API server checks the job without storing it (dry run), with the policies of
    the cluster. The trainer proves the labels of the first rows, if rows and tokenizer are on this machine.
    """
    manifests = read_manifests(file, name)
    folders = LocalFolders(volumes.resolve(), dict(volume), volumes.resolve())
    checked, spec = check_spec(manifests)
    checks = [checked]
    if offline:
        checks.append(Check("Server", "Skipped", "--offline"))
    else:
        checks.append(check_server(client, manifests.job))
    if spec is not None:
        checks.append(check_rows(manifests, spec, folders, data=data, tokenizer=tokenizer, count=rows))
    valid = all(found.status != "Failed" for found in checks)
    if output is None:
        echo("".join(f"{line}\n" for found in checks for line in _lines(found)))
    else:
        print_document({"valid": valid, "checks": [_result(found) for found in checks]}, output)
    return ExitCode.SUCCESS if valid else ExitCode.FAILED


def _result(found: Check) -> dict[str, object]:
    return {**asdict(found), "details": list(found.details)}


def _lines(found: Check) -> list[str]:
    head = f"{found.name.lower():8}{found.status.lower():9}"
    lines = textwrap.wrap(
        printable(found.message),
        PLAIN_WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
    )
    for row in found.details[:_SHOWN_ROWS]:
        text = f"row {row['row']}: {row['reason']}: {row.get('detail') or ''}"
        lines += textwrap.wrap(
            printable(text),
            PLAIN_WIDTH,
            initial_indent=" " * len(head),
            subsequent_indent=" " * (len(head) + 2),
        )
    if len(found.details) > _SHOWN_ROWS:
        lines.append(f"{'':{len(head)}}and {len(found.details) - _SHOWN_ROWS} more")
    return lines
