"""`finetune create`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import click
from finetune_operator.api.spec import FineTuneJobSpec as Parser
from finetune_operator.api.validation import check

from finetune_cli.cluster.client import Client, manifest
from finetune_cli.create import sources
from finetune_cli.options import Command, Pair, cluster_options, echo, output_option
from finetune_cli.settings import apply_setting
from finetune_cli.text import print_document

if TYPE_CHECKING:
    from finetune_client.types import FineTuneJob, FineTuneJobSpec

_SHORT = {
    "epochs": "training.epochs",
    "learning_rate": "training.learningRate",
    "maximum_length": "training.maximumLength",
    "rank": "training.lora.rank",
    "gpus": "resources.gpus",
    "maximum_gpus": "resources.maximumGpus",
    "queue": "queueName",
}
"""Options for frequent fields."""

_WRITE = (
    "finetune create support-bot --model mistralai/Mistral-7B-Instruct-v0.3 --dataset secret://training-data/url "
    "--destination pvc://models > job.yaml"
)
_APPLY = (
    "finetune create support-bot --model pvc://models/base --dataset pvc://data/rows.jsonl --destination pvc://models "
    "--set training.lora.variant=DoRA --apply"
)
_CHECK = (
    "finetune create support-bot --model hf://org/base --model-secret hugging-face --dataset s3://data/rows.parquet "
    "--destination s3://models/support-bot --destination oci://registry.example.com/support-bot:1 --suspend --dry-run"
)
_EXAMPLES = (
    (_WRITE, "Write the YAML of a job."),
    (_APPLY, "Create the job in the cluster."),
    (_CHECK, "Let the API server check a suspended job with two destinations."),
)


@click.command("create", cls=Command, examples=_EXAMPLES)
@click.argument("name", metavar="NAME")
@click.option("--model", required=True, metavar="PLACE", help=f"Base model: {sources.MODEL_FORMS}.")
@click.option(
    "--model-secret", metavar="NAME[/KEY]", help="Secret with the token of the hub, or the keys of the store."
)
@click.option("--dataset", required=True, metavar="PLACE", help=f"Training rows: {sources.DATASET_FORMS}.")
@click.option("--dataset-secret", metavar="NAME[/KEY]", help="Secret for the dataset.")
@click.option("--validation", metavar="PLACE", help="Validation rows; without them, a tenth of the dataset.")
@click.option(
    "--destination",
    "destinations",
    required=True,
    multiple=True,
    metavar="PLACE",
    help=f"Destination: {sources.DESTINATION_FORMS}; repeatable.",
)
@click.option("--destination-secret", metavar="NAME[/KEY]", help="Secret for the destinations.")
@click.option("--epochs", type=float, metavar="NUMBER", help="training.epochs.")
@click.option(
    "--learning-rate", type=float, metavar="RATE", help="training.learningRate; without it, a rule chooses."
)
@click.option("--maximum-length", type=int, metavar="TOKENS", help="training.maximumLength.")
@click.option("--rank", type=int, metavar="NUMBER", help="training.lora.rank.")
@click.option("--gpus", type=int, metavar="NUMBER", help="resources.gpus.")
@click.option(
    "--maximum-gpus",
    type=int,
    metavar="NUMBER",
    help="resources.maximumGpus: the operator chooses the cheapest number.",
)
@click.option("--queue", metavar="NAME", help="LocalQueue of Kueue.")
@click.option(
    "--label", "labels", type=Pair("KEY=VALUE"), multiple=True, metavar="KEY=VALUE", help="Label; repeatable."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PATH=VALUE",
    help="Any other field of the spec, such as training.packing=Never; repeatable.",
)
@click.option("--suspend", is_flag=True, help="Create the job suspended.")
@click.option("--apply", is_flag=True, help="Create the job in the cluster.")
@click.option(
    "--dry-run", is_flag=True, help="Let the API server check the job, and print it; nothing is created."
)
@output_option("yaml", "json", "name")
@cluster_options
def create(client: Client, *, apply: bool, dry_run: bool, output: str | None, **options: Any) -> None:
    """Write the YAML of a FineTuneJob, or create it with --apply.

    The command checks the spec with the operator's own rules before it prints anything.
    """
    job = build_job(namespace=client.kubectl.namespace, **options)
    creates = apply and not dry_run
    created = client.create(job, dry_run=dry_run) if apply or dry_run else job
    if output == "name" or (creates and output is None):
        echo(f"finetunejob.finetune.dev/{job['metadata']['name']}{' created' if output is None else ''}\n")
    else:
        print_document(created if creates else job, output or "yaml")


def build_job(
    *,
    name: str,
    namespace: str | None,
    model: str,
    model_secret: str | None,
    dataset: str,
    dataset_secret: str | None,
    validation: str | None,
    destinations: Sequence[str],
    destination_secret: str | None,
    labels: Sequence[tuple[str, str]],
    settings: Sequence[str],
    suspend: bool,
    **short: Any,
) -> FineTuneJob:
    """Return the job. Raises UsageError or InvalidSpecError."""
    spec: dict[str, Any] = {
        "model": {"source": sources.model_source(model, model_secret)},
        "dataset": {"source": sources.dataset_source(dataset, dataset_secret)},
        "output": sources.output_of(tuple(destinations), destination_secret),
    }
    if validation is not None:
        spec["dataset"]["validation"] = {"source": sources.dataset_source(validation, dataset_secret)}
    for option, path in _SHORT.items():
        if short[option] is not None:
            apply_setting(spec, f"{path}={json.dumps(short[option])}")
    for setting in settings:
        apply_setting(spec, setting)
    if suspend:
        spec["suspend"] = True
    check(name, Parser.parse(spec))
    job = manifest(name, cast("FineTuneJobSpec", spec), dict(labels))
    if namespace is not None:
        job["metadata"]["namespace"] = namespace
    return job
