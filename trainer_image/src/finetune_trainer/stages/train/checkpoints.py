"""Complete checkpoints: sealed with the digest of every file, renamed into place, and verified before a resume."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from finetune_trainer.stages.train.checkpoint_files import REQUIRED, RUN, STATE
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from finetune_trainer.stages.train.origin import Origin

_log = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")
_SEAL = "files.json"
KEPT = 2


def publish_checkpoint(
    checkpoints: Path, step: int, write: Callable[[Path], Mapping[str, str]], keep: Collection[int] = ()
) -> Path:
    """Let `write` fill a new folder, seal it, move it into `checkpoints`, and remove all but the one before it.

    `write` gets the folder and returns the digest of each file. Two checkpoints stay: if the newest is broken, the
    other one still serves. Those of the steps in `keep` stay, too. After an error nothing of the new checkpoint is left,
    and the older ones are unchanged.
    """
    staging = checkpoints.with_name(f"{checkpoints.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        written = staging / f"checkpoint-{step}"
        written.mkdir(parents=True)
        write_json_atomically(written / _SEAL, dict(write(written)))
        _sync_folder(written)
        checkpoints.mkdir(parents=True, exist_ok=True)
        target = checkpoints / written.name
        if os.path.lexists(target):
            # Only a checkpoint that was skipped as broken or foreign has the name of a later step.
            target.replace(staging / "replaced")
        written.replace(target)
        _sync_folder(checkpoints)
        _sync_folder(checkpoints.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _remove_others(checkpoints, step, keep)
    return target


def whole_checkpoint(checkpoints: Path, step: int, origin: Origin | None = None) -> Path | None:
    """Return the folder of the checkpoint of `step` if it is whole and belongs to the run `origin`, else None."""
    folder = checkpoints / f"checkpoint-{step}"
    fault = _fault(folder, step, origin)
    if fault is None:
        return folder
    _log.warning("checkpoint of step %d cannot be used: %s", step, fault)
    return None


def newest_checkpoint(checkpoints: Path, origin: Origin | None = None) -> tuple[int, Path] | None:
    """Return (step, folder) of the newest checkpoint that is whole and belongs to the run `origin`; None without one.

    A broken or foreign checkpoint is skipped with a log line. Without `origin`, no checkpoint is foreign.
    """
    for step in sorted(_steps(checkpoints), reverse=True):
        folder = checkpoints / f"checkpoint-{step}"
        fault = _fault(folder, step, origin)
        if fault is None:
            return step, folder
        _log.warning("checkpoint of step %d is skipped: %s", step, fault)
    return None


def begun_run(checkpoints: Path, origins: Collection[Origin]) -> Origin | None:
    """Return the run of `origins` to which the newest checkpoint of any of them belongs; None without one.

    Checkpoints are not verified: only their descriptions are read.
    """
    for step in sorted(_steps(checkpoints), reverse=True):
        folder = checkpoints / f"checkpoint-{step}"
        with suppress(OSError, ValueError, RecursionError):
            described, written = _run_of(folder), (folder / _SEAL).stat().st_mtime
            for origin in origins:
                if origin.difference(described, written) is None:
                    return origin
    return None


def step_of(folder: str | Path | None) -> int | None:
    """Return the step in the name of a checkpoint's folder; None for no folder or another name."""
    match = None if folder is None else _NAME.fullmatch(os.path.basename(folder))  # noqa: PTH119 -- text or path
    return None if match is None else int(match[1])


def saved_steps(checkpoints: Path) -> tuple[int, int] | None:
    """Return (step, all steps of the run) of the newest checkpoint without verifying it; None without one."""
    for step in sorted(_steps(checkpoints), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            state = json.loads((checkpoints / f"checkpoint-{step}" / STATE).read_text(encoding="utf-8"))
            return step, int(state["max_steps"])
    return None


def remove_older(checkpoints: Path, step: int, keep: Collection[int] = ()) -> bool:
    """Remove the checkpoints before `step`, but not those of `keep`, to make room; return whether there were any."""
    older = [found for found in _steps(checkpoints) if found < step and found not in keep]
    for found in older:
        _remove(checkpoints / f"checkpoint-{found}")
    return bool(older)


def _remove_others(checkpoints: Path, step: int, keep: Collection[int]) -> None:
    """Keep the checkpoint of `step`, the one before it, and those of `keep`.

    Later ones were skipped when this run began, so they are broken or of another run.
    """
    before = sorted(found for found in _steps(checkpoints) if found < step)
    for found in _steps(checkpoints):
        if found != step and found not in before[1 - KEPT :] and found not in keep:
            _remove(checkpoints / f"checkpoint-{found}")


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        _log.warning("the old checkpoint %s cannot be removed", path.name)


def _steps(checkpoints: Path) -> list[int]:
    try:
        names = os.listdir(checkpoints)  # noqa: PTH208 -- only names are needed
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]


def _fault(folder: Path, step: int, origin: Origin | None) -> str | None:
    """Describe a checkpoint's first fault; None if it has none."""
    try:
        return _broken(folder, step) or (
            None if origin is None else origin.difference(_run_of(folder), (folder / _SEAL).stat().st_mtime)
        )
    except (OSError, ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


def _broken(folder: Path, step: int) -> str | None:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return "it is not a folder"
    # Hidden files are the file system's own, for example those of NFS.
    names = {name for name in os.listdir(folder) if not name.startswith(".")}  # noqa: PTH208 -- only names are needed
    for name in sorted(names):
        # A link may lead to a file that changes later, and reading a pipe never ends.
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            return f"{name} is not a regular file"
    digests = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
    if not isinstance(digests, dict):
        return f"{_SEAL} is not an object"
    missing = sorted((REQUIRED | digests.keys()) - names) or sorted(REQUIRED - digests.keys())
    unsealed = sorted(names - digests.keys() - {_SEAL})
    if missing or unsealed:
        return f"{missing[0]} is missing" if missing else f"{unsealed[0]} is not in {_SEAL}"
    for name, digest in sorted(digests.items()):
        if file_digest(folder / name) != digest:
            return f"{name} has changed since it was written"
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    found = state.get("global_step") if isinstance(state, dict) else None
    return None if found == step else f"its state is of step {found}"


def _run_of(folder: Path) -> object:
    path = folder / RUN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Some file systems cannot, and then they need not."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
