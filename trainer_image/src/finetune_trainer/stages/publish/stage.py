"""Tries the destinations before PREPARE. After MERGE it copies the artifacts to them and tells the trackers of the run."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING

from finetune_trainer.contract.bounds import MAXIMUM_ADDRESS, shorten
from finetune_trainer.contract.result import MergeResult, PublicationResult, PublishedResult, StageResult
from finetune_trainer.destinations.local_artifact import read_artifact
from finetune_trainer.destinations.opening import open_publisher
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.tracking.recording import record_run
from finetune_trainer.workspace.access import require_workspace
from finetune_trainer.workspace.completed import (
    forget_remote_publication,
    record_remote_publication,
    trained_result,
)
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.contract.destinations import NamedDestination
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)


def probe(run: RunSpec, progress: Reporter, environment: Mapping[str, str] = os.environ) -> StageResult:
    """Write, read and delete a small object at every destination, before anything is downloaded.

    If every destination proves that this spec is published there, that is recorded in the workspace for PREPARE, and
    nothing is trained again. Once TRAIN has finished in the workspace, a destination that fails is left to MERGE, which can
    wait for it. Raises StageError with a reason that starts with `Destination`, or with WorkspaceAccessDenied.
    """
    layout = WorkspaceLayout(run.workspace.path)
    if layout.root.exists():
        require_workspace(layout.root)
    forget_remote_publication(layout)
    trained = trained_result(run, layout) is not None
    found: list[PublishedResult | None] = []
    for destination in run.output.destinations:
        progress.update("Starting", 0, None)
        try:
            publisher = open_publisher(run, destination, environment)
            manifest = publisher.published()
            found.append(PublishedResult.read((manifest or {}).get("results")))
            if found[-1] is None and not trained:
                publisher.probe()
        except StageError as error:
            if not trained:
                raise
            _log.warning("MERGE will try destination %s again: %s", destination.name, error.message)
            found.append(None)
    results = found[0] if found else None
    if results is not None and None not in found:
        copies = tuple(_publication(destination, None) for destination in run.output.destinations)
        merged = results.merge.model_copy(update={"publications": copies})
        record_remote_publication(run, layout, results.model_copy(update={"merge": merged}))
    return StageResult()


def publish(run: RunSpec, progress: Reporter, environment: Mapping[str, str] = os.environ) -> MergeResult:
    """Copy the published artifacts to every destination and tell the trackers; return MERGE's result with both.

    Each destination is tried, even if one before it fails, so that one outage delays no other place. It is safe to run this
    again at any point. Raises StageError: the first failure of a destination, or a reason of `read_artifact`.
    """
    layout = WorkspaceLayout(run.workspace.path)
    result = MergeResult.read(read_marker(layout, "merge", run.spec_hash))
    if result is None:
        raise StageError(
            Reason.INTERNAL_ERROR, "MERGE must have finished in this workspace, found no marker of it"
        )
    publications = _publish_copies(run, progress, environment) if run.output.destinations else None
    # Only now is the model where the trackers' readers look for it. The stage is past everything that can fail.
    tracking = record_run(run, layout, environment) if run.tracking else None
    found = {"publications": publications, "tracking": tracking}
    return result.model_copy(update={name: value for name, value in found.items() if value is not None})


def _publish_copies(
    run: RunSpec, progress: Reporter, environment: Mapping[str, str]
) -> tuple[PublicationResult, ...]:
    artifact = read_artifact(run.output.destination.path, run.spec_hash)
    total, before = artifact.bytes * len(run.output.destinations), 0
    publications: list[PublicationResult] = []
    failures: list[StageError] = []
    for destination in run.output.destinations:
        progress.update("Publishing", before, total)
        try:
            publisher = open_publisher(run, destination, environment)
            digest = publisher.publish(artifact, partial(_report, progress, before, total))
        except StageError as error:
            _log.warning("destination %s: %s: %s", destination.name, error.reason, error.message)
            failures.append(error)
        else:
            _log.info("published to %s", destination.address)
            publications.append(_publication(destination, digest))
        before += artifact.bytes
    if failures:
        count = f"{len(publications)} of {len(run.output.destinations)} destinations have the artifacts; "
        raise StageError(failures[0].reason, count + failures[0].message) from failures[0]
    return tuple(publications)


def _publication(destination: NamedDestination, digest: str | None) -> PublicationResult:
    place = {"name": destination.name, "uri": shorten(destination.address, MAXIMUM_ADDRESS)}
    # A member that is not set is not written.
    return PublicationResult(**place) if digest is None else PublicationResult(**place, digest=digest)


def _report(progress: Reporter, before: int, total: int, sent: int) -> None:
    progress.update("Publishing", before + sent, total)
