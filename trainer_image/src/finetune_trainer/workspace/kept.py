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
    from collections.abc import Sequence
    from pathlib import Path

    from finetune_trainer.workspace.kept_logs import StoredLog

FRAME = "finetune-kept/1"
MAXIMUM_BYTES = 8 << 20
"""Less than the 10 MiB after which the kubelet rotates the log of a pod."""
REPORTS = {"html": "index.html", "json": "job.json"}


def print_kept(folder: Path, wanted: str, attempt: int | None, output: BinaryIO) -> bool:
    """Print a frame and the content; return False, with the reason in the frame, if there is none.

    `wanted` is `html` or `json` for the report, or a stage in lower case for the logs of its steps: those of `attempt`, or
    of the newest one.
    """
    logs = logs_of(folder)
    head: dict[str, Any] = {"frame": FRAME, "logs": [f"{log.step}-{log.attempt}" for log in logs]}
    paths = [folder / REPORT_FOLDER / REPORTS[wanted]] if wanted in REPORTS else _logs(logs, wanted, attempt)
    try:
        content = b"".join(_read(path) for path in paths)
    except OSError as error:
        paths, head["error"] = [], error.strerror or str(error)
    if not paths:
        output.write(_line(head))
        return False
    digest = hashlib.sha256(content).hexdigest()
    output.write(_line({**head, "bytes": len(content), "sha256": digest}))
    # A last line without its end would be joined with what the kubelet writes next.
    output.write(content + b"\n")
    return True


def _logs(logs: Sequence[StoredLog], wanted: str, attempt: int | None) -> list[Path]:
    found = [log for log in logs if log.stage.lower() == wanted]
    chosen = max((log.attempt for log in found), default=0) if attempt is None else attempt
    return [log.path for log in found if log.attempt == chosen]


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
