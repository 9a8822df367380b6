"""`finetune calibrate`: compute the chart's `calibration` value from the measurements of finished runs."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import click
import yaml
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION, Calibration, Run, fit_calibration
from pydantic.alias_generators import to_camel

from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.errors import UsageError
from finetune_cli.kubectl import kubectl_get
from finetune_cli.manifests import read_documents
from finetune_cli.options import Command
from finetune_cli.speeds import print_speeds

DESCRIPTION = """Compare the estimated GPU memory of finished FineTuneJobs with the measurements of their runs.

Print the chart's calibration value. It needs at least three runs with the same stack profile. They must be estimated without a
calibration. Without files, the command reads the jobs of the cluster (kubectl get finetunejobs -A).

FILE is the output of kubectl get finetunejobs -o json or yaml; - reads stdin."""

STATIC_TERMS = frozenset(
    [
        "layer weights",
        "quantization constants",
        "embedding",
        "output head",
        "norms and biases",
        "adapter",
        "gradients",
        "optimizer states",
    ]
)
"""Terms of an estimate that the batch does not change."""
_FORMER_STATIC_TERMS = frozenset(["quantisation constants", "optimiser states"])
"""Names of such terms in the status of jobs that ran under an earlier operator."""


@click.command(
    "calibrate",
    cls=Command,
    help=DESCRIPTION,
    examples=(
        ("finetune calibrate", "Fit the estimates to all finished jobs of the cluster."),
        ("finetune calibrate jobs.json --version 2026-11", "Fit them to the jobs in a file."),
    ),
)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig from which to read the jobs.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig from which to read the jobs.")
@click.option("--stack", help="Use only runs with this stack profile, if there are several.")
@click.option(
    "--speeds",
    is_flag=True,
    help="Print cost.speeds of the chart instead: the measured speed of each GPU product, from one run or more.",
)
@click.option("--version", help="Name of the calibration (default: a digest of the runs).")
def command(**options: Any) -> int:
    """Print a calibration."""
    return calibrate(SimpleNamespace(**options), sys.stdout)


def calibrate(options: SimpleNamespace, output: TextIO) -> int:
    """Print a calibration. Raises UsageError if there are too few runs, or runs with several stack profiles."""
    jobs = _jobs(options)
    if options.speeds:
        return print_speeds(jobs, output)
    found = [(stack, run) for job in jobs for stack, run in measured_runs(job)]
    stacks = sorted({stack for stack, _ in found})
    if options.stack is None and len(stacks) > 1:
        raise UsageError(
            f"the runs must have the same stack profile, found {', '.join(stacks)}; choose one with --stack"
        )
    runs = [run for stack, run in found if options.stack in {None, stack}]
    version = options.version or f"runs-{len(runs)}-{_digest(runs)}"
    try:
        fitted = fit_calibration(runs, version)
    except ValueError as error:
        raise UsageError(
            f"{error} among {len(jobs)} FineTuneJobs; a run counts if TRAIN succeeded on a GPU, the status has the "
            "estimate and the measurement, and the estimate was made without a calibration"
        ) from error
    print(f"# chart value, from {len(runs)} runs with {options.stack or stacks[0]}", file=output)
    print(yaml.safe_dump({"calibration": as_document(fitted)}, sort_keys=False), end="", file=output)
    return 0


def as_document(calibration: Calibration) -> dict[str, Any]:
    """The calibration in the form that parse_calibration reads."""
    return {to_camel(name): value for name, value in asdict(calibration).items() if value is not None}


def measured_runs(job: Mapping[str, Any]) -> Iterator[tuple[str, Run]]:
    """The finished runs of a job, each with the name of its stack profile.

    A run is a succeeded attempt of TRAIN with a measured GPU. The estimate comes from `status.plan`. An estimate with a
    calibration does not count, because it would be corrected twice.
    """
    status = _mapping(job.get("status"))
    plan = _mapping(status.get("plan"))
    estimate = _mapping(plan.get("memory"))
    terms = [_mapping(term) for term in estimate.get("terms") or ()]
    static = sum(
        _size(term, "bytes")
        for term in terms
        if term.get("name") in STATIC_TERMS | _FORMER_STATIC_TERMS
        and term.get("phase") == estimate.get("bottleneck")
    )
    if plan.get("calibration") != NO_CALIBRATION.version or not static:
        return
    for attempt in map(_mapping, status.get("attempts") or ()):
        memory = _mapping(attempt.get("memory"))
        if attempt.get("stage") != "Train" or attempt.get("outcome") != "Succeeded":
            continue
        if attempt.get("rung"):
            # It ran with less memory than the plan that was estimated.
            continue
        if not _size(memory, "allocatedBytes") or not _size(memory, "reservedBytes"):
            continue
        yield (
            str(plan.get("stack")),
            Run(
                estimated_peak=_size(estimate, "peakBytes"),
                estimated_static=static,
                estimated_device=_size(estimate, "deviceBytes"),
                measured_allocated=_size(memory, "allocatedBytes"),
                measured_reserved=_size(memory, "reservedBytes"),
                measured_device=_size(memory, "deviceBytes") or None,
            ),
        )


def _jobs(options: SimpleNamespace) -> list[Mapping[str, Any]]:
    if options.files and (options.context, options.kubeconfig) != (None, None):
        raise UsageError(
            "the jobs must come from files or from a cluster, found files and --context or --kubeconfig"
        )
    if not options.files:
        remedy = "or pass the jobs as files"
        kubectl = Kubectl(context=options.context, kubeconfig=options.kubeconfig)
        return list(_items([kubectl_get(["finetunejobs", "-A"], kubectl, remedy)]))
    documents = [
        document
        for name in options.files
        for document in read_documents(Path("/dev/stdin" if name == "-" else name))
    ]
    return list(_items(documents))


def _items(documents: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """The FineTuneJobs of lists and single documents."""
    for document in documents:
        items = document.get("items") if isinstance(document, Mapping) else None
        for item in items if isinstance(items, list) else [document]:
            if isinstance(item, Mapping) and item.get("kind") == "FineTuneJob":
                yield item


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _size(values: Mapping[str, Any], name: str) -> int:
    """A size in bytes, or 0 if there is none."""
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _digest(runs: Iterable[Run]) -> str:
    return hashlib.sha256(repr(sorted(map(repr, runs))).encode()).hexdigest()[:8]
