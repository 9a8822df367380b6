"""Stages of this very spec hash that workspace or destination prove to be finished."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import read_marker

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger(__name__)

_STEPS = frozenset({"prepare", "train", "merge"})


def completed_stages(run: RunSpec, layout: WorkspaceLayout) -> dict[str, Any]:
    """Return the results of TRAIN and MERGE whose markers say that they finished for this spec hash."""
    found: dict[str, Any] = {}
    for step in ("train", "merge"):
        result = read_marker(layout, step, run.spec_hash)
        if result is None:
            break
        found[step] = result
    return found


def published_results(run: RunSpec) -> dict[str, Any] | None:
    """Return the results `prepare`, `train` and `merge` if the destination proves that all is published.

    Proof is a manifest.json with this spec hash, and every file that it lists present with its digest.
    """
    destination = run.output.destination.path
    manifest = _manifest(destination / "manifest.json")
    results = manifest.get("results")
    files = manifest.get("files")
    if (
        manifest.get("specHash") != run.spec_hash
        or not isinstance(results, dict)
        or not isinstance(files, dict)
    ):
        return None
    if any(step not in results for step in _STEPS):
        return None
    for name, listed in files.items():
        path = destination / name
        if not path.is_file() or file_digest(path) != listed["digest"]:
            _log.warning("the destination's manifest lists %s, which is missing or has other bytes", name)
            return None
    return {step: results[step] for step in _STEPS}


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; empty where there is none that can be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("the destination's manifest cannot be read and proves nothing: %s", error)
        return {}
    return document if isinstance(document, dict) else {}
