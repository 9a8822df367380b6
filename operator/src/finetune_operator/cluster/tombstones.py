"""Remembers deleted objects for a while, so that a late answer of the API server does not bring one back."""

from __future__ import annotations

from collections import OrderedDict

REMEMBERED = 4096
"""More deletions than a busy cluster has while one request lasts: 130 a second for half a minute.

Each takes 200 bytes. Without its entry, a late answer may bring a deleted object back until the next full list.
"""


class Tombstones:
    """The versions at which the last deleted objects were deleted, by uid."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        """Keep the newest `remembered` deletions."""
        self._remembered = remembered
        self._versions: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._versions)

    def add(self, uid: str, version: int) -> None:
        """Record that the watch reported a deletion at `version`."""
        self._versions[uid] = max(version, self._versions.pop(uid, 0))
        if len(self._versions) > self._remembered:
            self._versions.popitem(last=False)

    def allows(self, uid: str, version: int) -> bool:
        """True if an object that was read at `version` may exist.

        The watch also reports an object as deleted if it loses the label that the watch selects. Such an object has the
        version of that report, or a later one.
        """
        return version >= self._versions.get(uid, version)
