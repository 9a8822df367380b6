"""`finetune logs JOB`: prints the log of a stage's pod, or the kept one if the pod is gone."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, TextIO

import click
from finetune_operator.api.stages import WORK_STAGES

from finetune_cli.errors import UsageError
from finetune_cli.kept.cluster import Cluster, why_waiting
from finetune_cli.kept.options import reader_options
from finetune_cli.kept.reading import read_kept
from finetune_cli.logs.cleaning import clean
from finetune_cli.logs.selection import Wanted, choose, containers_with_logs, pod_of
from finetune_cli.options import Command, complete_job

DESCRIPTION = (
    "Print the log of a stage. While its pod exists, this is the pod's log. After that, a short pod reads the log that the "
    "workspace keeps, or that was published with the artifacts to a claim. It needs the right to create and delete pods."
)
_POLL_SECONDS = 1.0


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
@click.option("--attempt", type=int, help="Attempt of the stage, from 0 (default: the last one).")
@click.option("-f", "--follow", is_flag=True, help="Print new lines until the stage ends.")
@reader_options
def command(**options: Any) -> int:
    """Print a log."""
    return logs(SimpleNamespace(**options), sys.stdout)


def logs(options: SimpleNamespace, output: TextIO) -> int:
    """Print the log; return 0. Raises UsageError that says what is missing."""
    cluster = Cluster(options.context, options.namespace, options.kubeconfig)
    job = cluster.job(options.job)
    wanted = choose(job, options.stage, options.attempt)
    pods = cluster.pods(options.job)
    pod = pod_of(pods, wanted)
    if pod is not None:
        if options.follow:
            pod = _await_start(cluster, options.job, wanted)
        started = containers_with_logs(pod)
        if not started and (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}:
            raise UsageError(f"pod {pod['metadata']['name']} must have started, found: {why_waiting(pod)}")
        if started and _print_pod(cluster, pod, wanted, options, output):
            return 0
    _print_kept(cluster, job, pods, wanted, options, output)
    return 0


def _print_pod(
    cluster: Cluster, pod: Mapping[str, Any], wanted: Wanted, options: SimpleNamespace, output: TextIO
) -> bool:
    """Print the logs of a pod's containers one after the other; False if the kubelet has none any more."""
    name, printed = pod["metadata"]["name"], False
    shown: set[str] = set()
    while True:
        for container in containers_with_logs(pod):
            if container in shown:
                continue
            shown.add(container)
            try:
                for line in cluster.lines(name, container, follow=options.follow):
                    output.write(clean(line.decode("utf-8", "replace")))
                    output.flush()
                    printed = True
            except UsageError:
                if printed or (pod.get("status") or {}).get("phase") == "Running":
                    raise
                return False
        if not options.follow or "trainer" in shown:
            return printed
        following = pod_of(cluster.pods(options.job), wanted)
        if following is None or (following.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return printed
        pod = following
        time.sleep(_POLL_SECONDS)


def _await_start(cluster: Cluster, job: str, wanted: Wanted) -> Mapping[str, Any]:
    """Wait until the attempt's pod has a container that has started."""
    while True:
        pod = pod_of(cluster.pods(job), wanted)
        if pod is None:
            raise UsageError(f"the pod of {wanted.stage} attempt {wanted.attempt} must start, but it is gone")
        if containers_with_logs(pod) or (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return pod
        time.sleep(_POLL_SECONDS)


def _print_kept(
    cluster: Cluster,
    job: Mapping[str, Any],
    pods: list[dict[str, Any]],
    wanted: Wanted,
    options: SimpleNamespace,
    output: TextIO,
) -> None:
    """Print the kept log of an attempt. Raises UsageError if there is none."""
    arguments = [wanted.stage, "--attempt", str(wanted.attempt)]
    kept = read_kept(cluster, job, arguments, image=options.image, seconds=options.timeout, pods=pods)
    if kept.content is None:
        raise UsageError(
            f"the log of {wanted.stage} attempt {wanted.attempt} must be kept, found "
            f"{', '.join(kept.logs) or 'no log at all'}; the pod may have ended before its trainer began"
        )
    output.write(clean(kept.content.decode("utf-8", "replace")))
