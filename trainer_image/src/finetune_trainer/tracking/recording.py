"""Sends the record of a finished run to every tracker, each in a thread of its own that is left behind at the deadline."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from finetune_trainer.contract.bounds import MAXIMUM_REASON, shorten
from finetune_trainer.contract.tracking import MLFLOW, MODEL_REGISTRY, Tracker, TrackingResult
from finetune_trainer.errors import StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from finetune_trainer.tracking.client import DEADLINE_SECONDS, TrackerClient
from finetune_trainer.tracking.mlflow import MLFLOW_KEYS, record_in_mlflow
from finetune_trainer.tracking.model_registry import record_in_model_registry
from finetune_trainer.tracking.record import Record, make_record
from finetune_trainer.workspace.destination import MANIFEST

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger(__name__)
_GRACE_SECONDS = 2.0
"""Added to the deadline, so that a client that keeps it can say what it found."""
_JOB = "job.json"
_FILES = ("index.html", _JOB, "dataset.html", "evaluation.html", "merge.html", "training.json")
_LARGEST_FILE = 16 << 20

Send = Callable[[], TrackingResult]


def record_run(
    run: RunSpec,
    layout: WorkspaceLayout,
    environment: Mapping[str, str],
    deadline_seconds: float = DEADLINE_SECONDS,
    *,
    folder: Path | None = None,
) -> tuple[TrackingResult, ...]:
    """Send the record to every tracker of the run and return what each has. It raises nothing, and ends by the deadline.

    What it sends is the report on the job, so it needs no model, no row and no library of models. `folder` has another
    report than that of the workspace.
    """
    tracking = run.tracking
    if tracking is None:
        return ()
    try:
        network = Network.from_environment(
            environment,
            RetryPolicy(run.limits.retry_seconds),
            allow_private=run.limits.allow_private_addresses,
        )
        record = _read_record(run, folder or layout.report)
        files = _report_files(folder or layout.report)
    except (StageError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"the workspace must have the report on the job, found none that can be read ({type(error).__name__})"
        if isinstance(error, StageError):
            message = error.message
        kinds = ((MLFLOW, tracking.mlflow), (MODEL_REGISTRY, tracking.model_registry))
        return tuple(_failure(kind, message) for kind, tracker in kinds if tracker is not None)
    allowed = run.limits.allow_private_addresses
    sends: dict[Tracker, Send] = {}
    mlflow, registry = tracking.mlflow, tracking.model_registry
    if mlflow is not None:

        def to_mlflow() -> TrackingResult:
            with TrackerClient(
                "MLflow",
                mlflow,
                environment,
                network,
                allow_private=allowed,
                keys=MLFLOW_KEYS,
                deadline_seconds=deadline_seconds,
            ) as client:
                return record_in_mlflow(client, mlflow, record, files)

        sends[MLFLOW] = to_mlflow
    if registry is not None:

        def to_registry() -> TrackingResult:
            with TrackerClient(
                "the model registry",
                registry,
                environment,
                network,
                allow_private=allowed,
                deadline_seconds=deadline_seconds,
            ) as client:
                return record_in_model_registry(client, registry, record)

        sends[MODEL_REGISTRY] = to_registry
    return send_all(sends, deadline_seconds + _GRACE_SECONDS)


def send_all(sends: Mapping[Tracker, Send], seconds: float) -> tuple[TrackingResult, ...]:
    """Run every `send` at the same time and return what is known after `seconds` at the latest.

    Looking up a name can hang beyond every timeout of a connection, so the threads are daemons that are not waited for.
    """
    found: dict[Tracker, TrackingResult] = {}

    def attempt(kind: Tracker, send: Send) -> None:
        try:
            found[kind] = send()
        except StageError as error:
            found[kind] = _failure(kind, error.message)
        except Exception as error:  # noqa: BLE001 -- a tracker never ends a run
            _log.warning("%s: %s", kind, error)
            found[kind] = _failure(
                kind, f"an answer that is not understood ({type(error).__name__}: {error})"
            )

    threads = {
        kind: threading.Thread(target=attempt, args=(kind, send), name=f"tracker-{kind}", daemon=True)
        for kind, send in sends.items()
    }
    for thread in threads.values():
        thread.start()
    ends = threading.Event()
    timer = threading.Timer(seconds, ends.set)
    timer.daemon = True
    timer.start()
    for thread in threads.values():
        while thread.is_alive() and not ends.is_set():
            thread.join(0.05)
    timer.cancel()
    late = f"no answer within {seconds:.0f} s; check that the tracker is up and reachable from the cluster"
    return tuple(found.get(kind) or _failure(kind, late) for kind in sends)


def _failure(kind: Tracker, message: str) -> TrackingResult:
    _log.warning("%s has no record of this run: %s", kind, message)
    return TrackingResult(kind=kind, recorded=False, message=shorten(message, MAXIMUM_REASON))


def _read_record(run: RunSpec, folder: Path) -> Record:
    """Read the report on this spec. Raises OSError, or ValueError and others for a broken one."""
    report = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    if report.get("specHash") != run.spec_hash:
        raise ValueError("the report is about another spec")
    return make_record(report, run.job.uid, _published(run))


def _published(run: RunSpec) -> dict[str, str]:
    """Return the digests of the published manifest and of the content that it lists; none if it cannot be read."""
    try:
        content = (run.output.destination.path / MANIFEST).read_bytes()
        manifest = json.loads(content)
    except (OSError, ValueError):
        return {}
    if not isinstance(manifest, dict) or manifest.get("specHash") != run.spec_hash:
        return {}
    digests = {"manifest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    listed = manifest.get("contentDigest")
    return {**digests, "content": listed} if isinstance(listed, str) else digests


def _report_files(folder: Path) -> dict[str, Path]:
    """Return the pages and documents for people that are there and not too large to send in time."""
    paths = {name: folder / name for name in _FILES}
    return {
        name: path for name, path in paths.items() if path.is_file() and path.stat().st_size <= _LARGEST_FILE
    }
