"""Complete checkpoints: sealed with the digest of every file, and verified before a resume."""

from __future__ import annotations

import json
import logging
import os
import shutil
from typing import TYPE_CHECKING

from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

_PREFIX = "checkpoint-"
_SEAL = "files.json"
KEPT = 2


def publish_checkpoint(written: Path, checkpoints: Path) -> Path:
    """Seal the folder `written` (named checkpoint-STEP), move it into `checkpoints`, and remove older ones.

    The two newest stay: if the newest is broken, the other one still serves.
    """
    digests = {}
    for path in sorted(written.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        digests[path.name] = file_digest(path)
    write_json_atomically(written / _SEAL, digests)
    checkpoints.mkdir(parents=True, exist_ok=True)
    target = checkpoints / written.name
    if target.exists():
        shutil.rmtree(target)
    written.replace(target)
    for step in sorted(_steps(checkpoints))[:-KEPT]:
        shutil.rmtree(checkpoints / f"{_PREFIX}{step}")
    return target


def newest_checkpoint(checkpoints: Path) -> tuple[int, Path] | None:
    """Return (step, folder) of the newest checkpoint whose files all have their digests; None without one.

    A broken checkpoint is skipped with a log line.
    """
    for step in sorted(_steps(checkpoints), reverse=True):
        folder = checkpoints / f"{_PREFIX}{step}"
        fault = _fault(folder)
        if fault is None:
            return step, folder
        _log.warning("checkpoint of step %d is skipped: %s", step, fault)
    return None


def _steps(checkpoints: Path) -> list[int]:
    if not checkpoints.is_dir():
        return []
    names = [path.name.removeprefix(_PREFIX) for path in checkpoints.glob(f"{_PREFIX}*")]
    return [int(name) for name in names if name.isdigit()]


def _fault(folder: Path) -> str | None:
    """Describe a checkpoint's first fault; None if it has none."""
    try:
        digests = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if file_digest(folder / name) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
