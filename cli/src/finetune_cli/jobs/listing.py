"""`finetune list`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from finetune_cli.cluster.client import Client
from finetune_cli.jobs.summary import summary
from finetune_cli.options import Command, cluster_options, echo, output_option, selection_options
from finetune_cli.text import columns, duration, moment, print_document

PHASES = ("Pending", "Preparing", "Training", "Merging", "Stalled", "Suspended", "Succeeded", "Failed")


@click.command(
    "list",
    cls=Command,
    examples=(
        ("finetune list", "The jobs of the namespace."),
        ("finetune list -A --phase Failed -o wide", "Every failed job of the cluster, with its reason."),
        ("finetune list -l team=search -o name", "The names of the jobs with a label."),
    ),
)
@selection_options
@click.option(
    "--phase", type=click.Choice(PHASES), multiple=True, help="Only jobs in this phase; repeatable."
)
@output_option("wide", "json", "yaml", "name")
@cluster_options
def list_jobs(
    client: Client, *, all_namespaces: bool, selector: str | None, phase: Sequence[str], output: str | None
) -> None:
    """List FineTuneJobs, the newest last.

    -o json and -o yaml print summaries (contract/cli.schema.json). kubectl get ftj -o json prints the whole objects.
    """
    jobs = [summary(job) for job in client.list(selector, all_namespaces=all_namespaces)]
    jobs = [job for job in jobs if not phase or job["phase"] in phase]
    jobs.sort(key=lambda job: (job["creationTime"] or "", job["namespace"] or "", job["name"]))
    if output in {"json", "yaml"}:
        print_document({"jobs": jobs}, output)
    elif output == "name":
        echo("".join(f"finetunejob.finetune.dev/{job['name']}\n" for job in jobs))
    elif jobs:
        echo(table(jobs, datetime.now(UTC), wide=output == "wide", namespaces=all_namespaces))
    else:
        click.echo("no FineTuneJobs found", err=True)


def table(jobs: Sequence[Mapping[str, Any]], now: datetime, *, wide: bool, namespaces: bool) -> str:
    """Return the table of summaries."""
    shown = {
        **({"NAMESPACE": "namespace"} if namespaces else {}),
        "NAME": "name",
        "PHASE": "phase",
        "STAGE": "stage",
        "PROGRESS": "percent",
        "MODEL": "model",
        "GPUS": "gpus",
        "VERDICT": "verdict",
        "AGE": "age",
        **(
            {"REASON": "reason", "LOSS": "loss", "GPU": "gpu", "NODE": "node", "QUEUE": "queue"}
            if wide
            else {}
        ),
    }
    rows = [{**job, "age": _age(job["creationTime"], now)} for job in jobs]
    lines = columns(list(shown), [[row[member] for member in shown.values()] for row in rows])
    return "\n".join(lines) + "\n"


def _age(created: Any, now: datetime) -> str | None:
    start = moment(created)
    return None if start is None else duration((now - start).total_seconds())
