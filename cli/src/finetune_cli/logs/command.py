"""`finetune logs JOB`: prints the log of a stage's pod, or the kept one if the pod is gone."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click
from finetune_operator.api.stages import WORK_STAGES

from finetune_cli.cleaning import clean
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubectl import ClusterError, Kubectl
from finetune_cli.cluster.pods import why_waiting
from finetune_cli.errors import UsageError
from finetune_cli.kept.cluster import log_lines, pods_of
from finetune_cli.kept.options import reader_options
from finetune_cli.kept.reading import read_kept
from finetune_cli.logs.selection import Wanted, choose, containers_with_logs, has_ended, pod_of
from finetune_cli.options import Command, complete_job, echo
from finetune_cli.text import printable

DESCRIPTION = (
    "Print the log of a stage. While its pod exists, this is the pod's log. After that, a short pod reads the log that the "
    "workspace keeps, or that was published with the artifacts to a claim. It needs the right to create and delete pods."
)
_POLL_SECONDS = 1.0
Pod = Mapping[str, Any]


@click.command(
    "logs",
    cls=Command,
    help=DESCRIPTION,
    examples=(
        ("finetune logs support-bot -f", "Follow the stage that runs."),
        (
            "finetune logs support-bot --stage prepare --attempt 0",
            "Print the log of an attempt that has ended.",
        ),
    ),
)
@click.argument("job", metavar="JOB", shell_complete=complete_job)
@click.option(
    "--stage",
    type=click.Choice([stage.slug for stage in WORK_STAGES]),
    help="Stage (default: the one that runs, or the last one).",
)
@click.option(
    "--attempt", type=click.IntRange(min=0), help="Attempt of the stage, from 0 (default: the last one)."
)
@click.option("-f", "--follow", is_flag=True, help="Print new lines until the stage ends.")
@reader_options
def command(
    client: Client,
    job: str,
    stage: str | None,
    attempt: int | None,
    *,
    follow: bool,
    image: str | None,
    timeout: int,
) -> None:
    """Print the log. Raises UsageError that says what is missing."""
    found = client.get(job)
    wanted = choose(found, stage, attempt)
    pods = pods_of(client.kubectl, job)
    pod = pod_of(pods, wanted)
    if pod is not None and _print_pod(client.kubectl, job, pod, wanted, follow=follow):
        return
    arguments = [wanted.stage, "--attempt", str(wanted.attempt)]
    kept = read_kept(client.kubectl, found, arguments, image=image, seconds=timeout, pods=pods)
    if kept.content is None:
        raise UsageError(
            f"the log of {wanted.stage} attempt {wanted.attempt} must be kept, found "
            f"{', '.join(kept.logs) or 'no log at all'}; the pod may have ended before its trainer began"
        )
    echo(clean(kept.content.decode("utf-8", "replace")))


def _print_pod(kubectl: Kubectl, job: str, pod: Pod, wanted: Wanted, *, follow: bool) -> bool:
    """Print the logs of a pod's containers one after the other; False if the pod has ended or is gone, and had no line.

    Raises UsageError if the pod has not started, and nobody waits for it.
    """
    shown: set[str] = set()
    said = ""
    printed = False
    while True:
        for container in containers_with_logs(pod):
            if container not in shown:
                shown.add(container)
                printed |= _print_container(kubectl, pod, container, follow=follow, needed=printed)
        if has_ended(pod) or (shown and not follow) or "trainer" in shown:
            return printed or not has_ended(pod)
        waits = why_waiting(pod)
        if not follow:
            raise UsageError(f"pod {pod['metadata']['name']} must have started, found: {waits}")
        if not shown and waits != said:
            said = waits
            click.echo(f"finetune: pod {pod['metadata']['name']} waits: {printable(waits)}", err=True)
        time.sleep(_POLL_SECONDS)
        newest = pod_of(pods_of(kubectl, job), wanted)
        if newest is None:
            return printed
        pod = newest


def _print_container(kubectl: Kubectl, pod: Pod, container: str, *, follow: bool, needed: bool) -> bool:
    """Print a container's log; False if there was no line.

    A log that cannot be read is an error, unless the pod has ended: then the log may be kept elsewhere. With `needed`, it is
    one in any case, because a part is printed already.
    """
    printed = False
    try:
        for line in log_lines(kubectl, pod["metadata"]["name"], container, follow=follow):
            echo(clean(line.decode("utf-8", "replace")))
            sys.stdout.flush()
            printed = True
    except ClusterError:
        if printed or needed or not has_ended(pod):
            raise
    return printed
