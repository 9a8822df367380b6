"""One training example as token ids and labels."""

from __future__ import annotations

from dataclasses import dataclass

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids and labels of equal length. A label equals its id if the token is learned, else it is -100.

    `row` is the 1-based number of the row in its source; the masker does not know it and leaves it at 0.
    `dropped_turns` counts the earlier turns that were left out to keep the maximum length; tables do not store it.
    `escaped` is True if its text mentions control tokens as plain text; tables do not store it either.
    """

    input_ids: list[int]
    labels: list[int]
    row: int = 0
    dropped_turns: int = 0
    escaped: bool = False

    def of_row(self, row: int) -> Example:
        """Return the same example with the number of its row."""
        return Example(self.input_ids, self.labels, row, self.dropped_turns, self.escaped)

    @property
    def supervised(self) -> tuple[int, ...]:
        """Positions of the learned tokens. The first token is never one of them: nothing precedes it."""
        return tuple(position for position, label in enumerate(self.labels) if position and label != IGNORED)

    @property
    def supervised_tokens(self) -> int:
        """Number of learned tokens."""
        return sum(label != IGNORED for label in self.labels)
