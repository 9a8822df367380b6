"""Prints what a workspace or a published folder keeps of a job: a log, or the report, for a reader without its own mount.

The reader is `finetune logs` and `finetune report`. It gets the output through the log of a pod, which may be cut or mixed
with other lines. So a line of JSON comes first, with the size and the digest of what follows.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune_trainer.workspace.destination import REPORT_FOLDER
from finetune_trainer.workspace.kept_logs import stored_logs
from finetune_trainer.workspace.layout import WorkspaceLayout

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.workspace.kept_logs import StoredLog

FRAME = "finetune-kept/1"
MAXIMUM_BYTES = 8 << 20
"""Less than the 10 MiB after which the kubelet rotates the log of a pod."""
REPORTS = {"html": "index.html", "json": "job.json"}


def print_kept(folder: Path, wanted: str, attempt: int | None, output: BinaryIO) -> bool:
    """Print a frame and the content; return False, with the reason in the frame, if there is none.

    `wanted` is `html` or `json` for the report, or a stage or step for its log: that of `attempt`, or of the newest one.
    """
    logs = logs_of(folder)
    listed = [f"{log.step}-{log.attempt}" for log in logs]
    if wanted in REPORTS:
        path: Path | None = folder / REPORT_FOLDER / REPORTS[wanted]
    else:
        found = [log for log in logs if log.step == wanted and attempt in {None, log.attempt}]
        path = found[-1].path if found else None
    head: dict[str, Any] = {"frame": FRAME, "logs": listed}
    try:
        content = None if path is None else _read(path)
    except OSError as error:
        content, head["error"] = None, error.strerror or str(error)
    if path is None or content is None:
        output.write(_line({**head, "name": None}))
        return False
    digest = hashlib.sha256(content).hexdigest()
    output.write(_line({**head, "name": path.name, "bytes": len(content), "sha256": digest}))
    # A last line without its end would be joined with what the kubelet writes next.
    output.write(content + b"\n")
    return True


def logs_of(folder: Path) -> list[StoredLog]:
    """Return the logs of a workspace or, if it has none, those of a published report."""
    return stored_logs(WorkspaceLayout(folder).logs) or stored_logs(folder / REPORT_FOLDER)


def _line(head: dict[str, Any]) -> bytes:
    return json.dumps(head, sort_keys=True).encode() + b"\n"


def _read(path: Path) -> bytes:
    """Return a file's bytes. Raises OSError for a link, for anything that is no file, and for one that is too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 -- it is open already
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is no file")
        content = file.read(MAXIMUM_BYTES + 1)
    if len(content) > MAXIMUM_BYTES:
        raise OSError(0, f"it must have at most {MAXIMUM_BYTES >> 20} MiB")
    return content
