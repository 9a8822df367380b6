"""Copies the report of a job that has ended to its destinations, and tells trackers of a job that has failed."""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING

from finetune_trainer.contract.bounds import MAXIMUM_REASON, shorten
from finetune_trainer.contract.result import ReportFailure, ReportResult, StageResult
from finetune_trainer.destinations.local_artifact import LocalArtifact, LocalFile
from finetune_trainer.destinations.opening import open_publisher
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.report.event_file import EVENT_FILE
from finetune_trainer.report.job_document import Failure
from finetune_trainer.report.job_page import write_job_report
from finetune_trainer.tracking.recording import record_run
from finetune_trainer.workspace.access import require_workspace
from finetune_trainer.workspace.destination import REPORT_FOLDER
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.kept_logs import stored_logs
from finetune_trainer.workspace.layout import WorkspaceLayout, json_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from finetune_trainer.contract.report_task import ReportTask
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)

_SUFFIXES = {".html", ".json"}
_MAXIMUM_BYTES = 64 << 20
"""Of one file. Those of this trainer are far smaller."""


def publish_report(
    run: RunSpec, progress: Reporter, environment: Mapping[str, str] = os.environ
) -> StageResult:
    """Write the page with the end that the operator knows, copy it with the logs to every place, and tell the trackers.

    Each place is tried, even if one before it fails. With trackers, a failure of a place is a part of the result. Otherwise
    this raises StageError: the first failure of a destination.
    """
    task = run.report
    if task is None:
        raise StageError(Reason.INVALID_RUN_SPEC, "the step Report must have the member `report`, found none")
    layout = WorkspaceLayout(run.workspace.path)
    require_workspace(layout.root)
    artifact = collect(run, layout, task)
    error = _copy(run, task, artifact, progress, environment)
    if run.tracking is None:
        if error is not None:
            raise error
        return StageResult()
    # One that fails does not hide what the other has done.
    told = record_run(run, layout, environment, folder=report_folder(layout))
    failure = (
        None
        if error is None
        else ReportFailure(reason=error.reason, message=shorten(error.message, MAXIMUM_REASON))
    )
    found = {"tracking": told, **({} if failure is None else {"failure": failure})}
    return StageResult(report=ReportResult(**found))


def _copy(
    run: RunSpec,
    task: ReportTask,
    artifact: LocalArtifact,
    progress: Reporter,
    environment: Mapping[str, str],
) -> StageError | None:
    """Try each place and return the first failure, with the number of those that have the report."""
    failures: list[StageError] = []
    for number, destination in enumerate(task.destinations):
        progress.update("Publishing", number, len(task.destinations))
        try:
            open_publisher(run, destination, environment).publish(artifact, lambda _done: None)
        except StageError as error:
            _log.warning("destination %s: %s: %s", destination.name, error.reason, error.message)
            failures.append(error)
        else:
            _log.info("published the report to %s", destination.address)
    if not failures:
        return None
    done = len(task.destinations) - len(failures)
    count = f"{done} of {len(task.destinations)} destinations have the report; "
    found = StageError(failures[0].reason, count + failures[0].message)
    found.__cause__ = failures[0]
    return found


def report_folder(layout: WorkspaceLayout) -> Path:
    """The folder of the workspace in which `collect` gathers the report."""
    return layout.root / "publish" / REPORT_FOLDER


def collect(run: RunSpec, layout: WorkspaceLayout, task: ReportTask) -> LocalArtifact:
    """Gather reports and logs in a folder of the workspace, with a page on the whole job and a manifest.

    Links and large files are left out: other code wrote the workspace, and this process has credentials.
    """
    folder = report_folder(layout)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reports = sorted(layout.report.iterdir()) if layout.report.is_dir() else []
    for path in (
        *(each for each in reports if each.suffix in _SUFFIXES or each.name == EVENT_FILE),
        *(log.path for log in stored_logs(layout.logs)),
    ):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAXIMUM_BYTES:
            shutil.copyfile(path, folder / path.name, follow_symlinks=False)
    failure = task.failure
    write_job_report(
        run,
        layout,
        failure=None if failure is None else Failure(failure.stage, failure.reason, failure.message),
        attempts=task.attempts,
        folder=folder,
    )
    files = tuple(_file(path) for path in sorted(folder.iterdir()))
    manifest = {
        "version": "1.0",
        "kind": "Report",
        "job": run.job.model_dump(by_alias=True),
        "specHash": run.spec_hash,
        "outcome": task.outcome,
        "files": {file.name: {"digest": file.digest, "bytes": file.bytes} for file in files},
    }
    return LocalArtifact(files, json_text(manifest).encode(), run.spec_hash)


def _file(path: Path) -> LocalFile:
    return LocalFile(f"{REPORT_FOLDER}/{path.name}", path, file_digest(path), path.stat().st_size)
