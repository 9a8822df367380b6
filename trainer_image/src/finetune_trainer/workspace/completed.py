"""The stages that the workspace or the destination proves to be finished for exactly this spec."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.result import PublishedResult
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.workspace.destination import MANIFEST, writing_to
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import read_marker, write_marker

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger(__name__)


def trained_result(run: RunSpec, layout: WorkspaceLayout) -> TrainResult | None:
    """Return the result of TRAIN if its marker says that it finished for this spec hash.

    A marker of MERGE does not count: artifacts can be gone, so only the destination proves them.
    """
    return TrainResult.read(read_marker(layout, "train", run.spec_hash))


_REMOTE = "destinations"


def record_remote_publication(run: RunSpec, layout: WorkspaceLayout, results: PublishedResult) -> None:
    """Record that every destination of `output.destinations` proves this spec to be published there."""
    write_marker(layout, _REMOTE, run.spec_hash, results.document())


def forget_remote_publication(layout: WorkspaceLayout) -> None:
    """Forget an earlier record: artifacts can be gone, so only the present destinations prove them."""
    layout.marker(_REMOTE).unlink(missing_ok=True)


def remote_results(run: RunSpec, layout: WorkspaceLayout) -> PublishedResult | None:
    """Return the results that all destinations have proven just before PREPARE; None if one does not."""
    return PublishedResult.read(read_marker(layout, _REMOTE, run.spec_hash))


def published_results(run: RunSpec) -> PublishedResult | None:
    """Return the results of all stages if the destination proves that everything is published.

    Proof is a manifest.json with this spec hash, and every file that it lists present with its digest. Raises
    StageError(DestinationUnwritable) if such a file cannot be read.
    """
    destination = run.output.destination.path
    manifest = _manifest(destination / MANIFEST)
    results = PublishedResult.read(manifest.get("results"))
    files = manifest.get("files")
    if manifest.get("specHash") != run.spec_hash or results is None or not isinstance(files, dict):
        return None
    with writing_to(destination):
        for name, listed in files.items():
            path = destination / name
            if not path.is_file() or file_digest(path) != listed["digest"]:
                _log.warning("the destination's manifest lists %s, which is missing or has other bytes", name)
                return None
        statement = manifest.get("statement")
        if isinstance(statement, str) and not (destination / statement).is_file():
            _log.warning("the destination's manifest names the statement %s, which is missing", statement)
            return None
    return results


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; empty if it is missing or cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("the destination's manifest cannot be read and proves nothing: %s", error)
        return {}
    return document if isinstance(document, dict) else {}
