"""Tries, as the user of the process, every path of the workspace that a later stage will use."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DENIED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
# Everything else in the volume's root, such as `lost+found`, belongs to others.
_OWN = (
    "base", "base.partial", "dataset", "download", "logs", "markers", "model", "model.partial", "progress.json",
    "rendered-at.txt", "report", "tokenizer", "train",
)  # fmt: skip


def require_workspace(root: Path) -> None:
    """Make the workspace, write into each of its folders and open each of its files.

    An earlier attempt may have left files of another user. Links are not followed. Raises
    StageError(WorkspaceAccessDenied) with the first path that cannot be used.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _try_folder(root)
        for path in (root / name for name in _OWN):
            for own in _below(path):
                if own.is_dir():
                    _try_folder(own)
                else:
                    with own.open("rb"):
                        pass
    except OSError as error:
        if error.errno not in _DENIED:
            raise
        groups = ", ".join(str(group) for group in sorted({os.getegid(), *os.getgroups()}))
        raise StageError(
            Reason.WORKSPACE_ACCESS_DENIED,
            f"the pod's user must be able to read and write the workspace, found: {error.strerror} at "
            f"{error.filename or root} for user {os.geteuid()} with the groups {groups}; give them access by the owner or "
            "the mode of the folder, or use another workspace",
        ) from error


def _below(path: Path) -> Iterator[Path]:
    """Yield a path and everything below it, each folder before its content; no links."""
    if path.is_symlink() or not path.exists():
        return
    yield path
    if path.is_dir():
        for child in sorted(path.iterdir()):
            yield from _below(child)


def _try_folder(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".trial-"):
        pass
