"""Keeps the lines of series until what they show changes. A scrape then joins them.

To format the series of 10,000 jobs takes seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetune_operator.runtime.families import head

JOINED = 1000
"""Items whose lines are joined at once, which takes about a millisecond. No other thread runs while bytes are copied.

With fewer of them, a scrape beside a busy event loop would often wait for its turn.
"""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Lines:
    """What one item adds to a scrape: the lines of each family, in the order of the families."""

    families: tuple[bytes, ...]
    note: str = ""
    """What else is known about the item, for a family that counts items."""


class KeptLines(ABC, Generic[Item]):
    """Renders the series of items. Use it from one thread at a time."""

    def __init__(self, families: Mapping[str, str]) -> None:
        """`families` are the help texts of gauges by name, in the order of `Lines.families`."""
        self._families = families
        self._kept: dict[Hashable, tuple[object, Lines]] = {}

    @abstractmethod
    def _identify(self, item: Item) -> tuple[Hashable, object]:
        """The key of the item, and a version: what changes whenever the lines do."""

    @abstractmethod
    def _make(self, item: Item) -> Lines:
        """Format the lines of the item."""

    def __len__(self) -> int:
        return len(self._kept)

    def changed(self, items: Collection[Item]) -> list[Item]:
        """Those of the items whose lines are not kept."""
        return [item for item in items if self._find(*self._identify(item)) is None]

    def lines(self, items: Collection[Item]) -> list[Lines]:
        """Make the lines of these items, or take those that are kept, and keep them."""
        found = []
        for item in items:
            key, version = self._identify(item)
            lines = self._find(key, version)
            if lines is None:
                lines = self._make(item)
                self._kept[key] = (version, lines)
            found.append(lines)
        return found

    def forget_others(self, items: Collection[Item]) -> None:
        """Keep no lines but those of these items."""
        keys = [self._identify(item)[0] for item in items]
        self._kept = {key: self._kept[key] for key in keys if key in self._kept}

    def render(self, items: Collection[Item]) -> Iterator[bytes]:
        """All families of these items in the text format, which is that of OpenMetrics, too, in parts."""
        lines = self.lines(items)
        for place, (name, text) in enumerate(self._families.items()):
            yield head(name, text)
            for start in range(0, len(lines), JOINED):
                yield b"".join([each.families[place] for each in lines[start : start + JOINED]])

    def _find(self, key: Hashable, version: object) -> Lines | None:
        held = self._kept.get(key)
        return held[1] if held is not None and held[0] == version else None
