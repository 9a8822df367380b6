"""What a file without rows is, in words for its owner."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """What a file is, with its article, and what its owner can do about it (a clause without subject)."""

    what: str
    remedy: str
