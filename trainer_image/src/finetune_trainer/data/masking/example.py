"""One training example as token ids and labels."""

from __future__ import annotations

from dataclasses import dataclass

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids and labels of equal length; labels equal the ids where learned and are -100 elsewhere.

    `dropped_turns` counts the earlier turns that were left out to keep the maximum length.
    """

    input_ids: list[int]
    labels: list[int]
    dropped_turns: int = 0

    @property
    def supervised_tokens(self) -> int:
        """Number of learned tokens."""
        return sum(label != IGNORED for label in self.labels)
