"""`finetune compare`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from finetune_cli.cluster.client import Client
from finetune_cli.compare.document import document
from finetune_cli.compare.table import table
from finetune_cli.options import Command, cluster_options, complete_job, echo, output_option
from finetune_cli.text import print_document


@click.command(
    "compare",
    cls=Command,
    examples=(
        ("finetune compare support-bot support-bot-2", "What differs, and which of the two is better?"),
        ("finetune compare team-a/support-bot team-b/support-bot -o json", "Compare jobs of two namespaces."),
    ),
)
@click.argument("first", metavar="A", shell_complete=complete_job)
@click.argument("second", metavar="B", shell_complete=complete_job)
@output_option("json", "yaml")
@cluster_options
def compare(client: Client, first: str, second: str, output: str | None) -> None:
    """Compare two jobs: spec, dataset, plan, time, GPU hours and results.

    A and B are JOB or NAMESPACE/JOB. The command says if the results differ by more than chance. Results are compared only
    if both jobs have the same base model and the same validation rows.
    """
    result = document(_job(client, first), _job(client, second), datetime.now(UTC))
    if output is None:
        echo(table(result))
    else:
        print_document(result, output)


def _job(client: Client, text: str) -> Mapping[str, Any]:
    namespace, separator, name = text.rpartition("/")
    if not separator:
        return client.get(text)
    return Client(client.kubectl.within(namespace)).get(name)
