"""What is left of a document whose minor version is newer, if it has values that this version does not know."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from finetune_operator.contract.run_spec import CONTRACT_VERSION

_MAXIMUM_VISITS = 64
"""More unknown values than a document of 4,096 bytes can have in different places."""

Path = tuple[str | int, ...]


def is_newer(content: object) -> bool:
    """Return True if a document has this major version and a later minor one."""
    version = content.get("version") if isinstance(content, dict) else None
    major, _, minor = version.partition(".") if isinstance(version, str) else ("", "", "")
    own_major, _, own_minor = CONTRACT_VERSION.partition(".")
    return major == own_major and minor.isascii() and minor.isdigit() and int(minor[:6]) > int(own_minor)


class Remainder:
    """A copy of a newer document, without the members that a reader could not read.

    `without` is called with the places that a validation complains about, until it complains no more. A member goes
    first. If its parent needs it, the parent goes too, and so on up to a member of the document itself.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = copy.deepcopy(content)
        self._visits = 0

    def without(self, places: Iterable[Path]) -> bool:
        """Remove what stands at these places. Return False if nothing can be removed."""
        self._visits += 1
        if self._visits > _MAXIMUM_VISITS:
            return False
        # Later items first, so that the places of earlier ones stay.
        found = sorted({self._existing(place) for place in places}, key=_order, reverse=True)
        removed = [self._remove(place) for place in found]
        return all(removed)

    def _existing(self, place: Path) -> Path:
        """Return the part of a place that the document has; a validation also names the types that it tried."""
        value: Any = self.content
        for depth, key in enumerate(place):
            if isinstance(value, dict) and key in value:
                value = value[str(key)]
            elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
                value = value[key]
            else:
                return place[:depth]
        return place

    def _remove(self, place: Path) -> bool:
        """Remove a member or an item. A member of the document itself cannot be missed."""
        if len(place) < 2:
            return False
        parent: Any = self.content
        for key in place[:-1]:
            parent = parent[key]
        del parent[place[-1]]
        return True


def _order(place: Path) -> list[tuple[int, str]]:
    return [(key, "") if isinstance(key, int) else (-1, key) for key in place]
