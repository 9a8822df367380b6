"""`finetune retry`: a failed job once more, under another name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import click

from finetune_cli.cluster.client import Client, condition, has_ended, manifest
from finetune_cli.errors import UsageError
from finetune_cli.options import Command, cluster_options, echo, job_argument, output_option
from finetune_cli.settings import apply_setting
from finetune_cli.text import print_document

if TYPE_CHECKING:
    from finetune_client.types import FineTuneJob

LONGEST_NAME = 45
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>[1-9][0-9]{0,3})")
_NOT_COPIED = ("kubectl.kubernetes.io/", "argocd.argoproj.io/", "finetune.dev/")
RETRY_OF = "finetune.dev/retry-of"


@click.command(
    "retry",
    cls=Command,
    examples=(
        ("finetune retry support-bot", "Create support-bot-2 from the failed support-bot."),
        (
            "finetune retry support-bot --set training.microBatchSize=1 --dry-run",
            "Let the API server check the job with another value, and print it.",
        ),
    ),
)
@job_argument
@click.option(
    "--as", "new_name", metavar="NAME", help="Name of the new job (default: JOB-2, JOB-3 and so on)."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PATH=VALUE",
    help="Another value for a field of the spec, such as training.microBatchSize=1; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Let the API server check the new job, and print it.")
@output_option("name", "json", "yaml")
@cluster_options
def retry(
    client: Client,
    name: str,
    *,
    new_name: str | None,
    settings: Sequence[str],
    dry_run: bool,
    output: str | None,
) -> None:
    """Create a failed job again under another name.

    The spec of a FineTuneJob cannot change, and a failed one stays failed, so a new job gets its spec. It publishes to the
    same place. The failed job stays, with its status and workspace, until you delete it. The API server checks the new job
    before it is created.
    """
    job = client.get(name)
    if not has_ended(job) or condition(job, "Succeeded")["status"] != "False":
        raise UsageError(
            f"FineTuneJob {name} must have failed, found phase {(job.get('status') or {}).get('phase')}"
        )
    taken = set(client.names()) if new_name is None else set()
    again = new_job(job, new_name or next_name(name, taken), settings)
    checked = client.create(again, dry_run=True)
    created = checked if dry_run else client.create(again)
    if output in {"json", "yaml"} or (dry_run and output is None):
        print_document(again if dry_run else created, output or "yaml")
    else:
        echo(
            f"finetunejob.finetune.dev/{created['metadata']['name']}{'' if output == 'name' else ' created'}\n"
        )


def next_name(name: str, taken: set[str]) -> str:
    """Return the first free name of the form NAME-2, NAME-3 and so on."""
    matched = _NUMBERED.fullmatch(name)
    stem, number = (matched["stem"], int(matched["number"])) if matched else (name, 1)
    while True:
        number += 1
        suffix = f"-{number}"
        found = stem[: LONGEST_NAME - len(suffix)].rstrip("-") + suffix
        if found not in taken:
            return found


def new_job(job: Mapping[str, Any], name: str, settings: Sequence[str]) -> FineTuneJob:
    """Return the job that `name` is, with the spec, the labels and the annotations of `job`."""
    spec = deepcopy(job["spec"])
    spec.pop("suspend", None)
    _keep_destination(spec, job["metadata"]["name"])
    for setting in settings:
        apply_setting(spec, setting)
    again = manifest(name, spec, _copied(job["metadata"].get("labels")))
    again["metadata"]["annotations"] = {
        **_copied(job["metadata"].get("annotations")),
        RETRY_OF: job["metadata"]["name"],
    }
    if job["metadata"].get("namespace"):
        again["metadata"]["namespace"] = job["metadata"]["namespace"]
    return again


def _copied(entries: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels or annotations without those of kubectl, of a GitOps tool and of the operator.

    With the tracking label of Argo CD, Argo CD would prune the new job.
    """
    return {
        key: value
        for key, value in (entries or {}).items()
        if not key.startswith(_NOT_COPIED) and key != "app.kubernetes.io/instance"
    }


def _keep_destination(spec: Any, name: str) -> None:
    """Write the default folder of claims, which is the name of the job, so that it stays the same."""
    output = spec["output"]
    for destination in [output.get("destination"), *(output.get("destinations") or ())]:
        claim = (destination or {}).get("persistentVolumeClaim")
        if claim is not None:
            claim.setdefault("path", name)
