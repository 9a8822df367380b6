"""Datasets on a mounted volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path


def require_file(path: Path, maximum_bytes: int) -> Path:
    """Return `path` if it is a readable file.

    Raises StageError with DatasetNotFound, DatasetAccessDenied or DatasetTooLarge (size in bytes).
    """
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise StageError(
                Reason.DATASET_NOT_FOUND,
                f"dataset.source must name a file, found {found} at {path}; check claim, path and key",
            )
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise StageError(
            Reason.DATASET_ACCESS_DENIED,
            f"the pod's user or group must be able to read the dataset file, found no permission on {path}; "
            "change the file's mode or owner",
        ) from error
    if size > maximum_bytes:
        raise StageError(
            Reason.DATASET_TOO_LARGE,
            f"the dataset must have at most {maximum_bytes} bytes, found {size}; "
            "use a smaller one or raise trainer.limits.datasetBytes in the chart",
        )
    return path
