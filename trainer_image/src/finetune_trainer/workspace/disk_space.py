"""Recognizes failures by a full disk, which each library reports in another way."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ERRORS = frozenset([errno.ENOSPC, errno.EDQUOT])
# safetensors and pyarrow wrap the system's error in their own exceptions and keep its text.
_WORDS = tuple(os.strerror(number) for number in _ERRORS)
_LITTLE = 64 * 1024


def says_disk_full(error: BaseException) -> bool:
    """Return whether an error, or a cause of it, reports that no space or quota is left."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in _ERRORS:
            return True
        if any(word in str(current) for word in _WORDS):
            return True
        current = current.__cause__ or current.__context__
    return False


def is_full(folder: Path) -> bool:
    """Return whether almost nothing can be written to the folder's volume; False if that is not known.

    torch's writer does not report the cause of a failed write.
    """
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _LITTLE
