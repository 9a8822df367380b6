"""Whether a failure was for want of disk space; libraries say so in ways of their own."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ERRORS = frozenset([errno.ENOSPC, errno.EDQUOT])
# safetensors and pyarrow wrap the system's error in exceptions of their own and keep its words.
_WORDS = tuple(os.strerror(number) for number in _ERRORS)
_LITTLE = 64 * 1024


def says_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that there is no space left, or no quota."""
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
    """Whether next to nothing can be written to the folder's volume; False where that cannot be told.

    torch's writer says nothing of the cause when a write fails.
    """
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _LITTLE
