"""How the rows of a step or of an evaluation are shared out to ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def shares(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Return the rows of each rank, as positions in `lengths`, the rows' tokens. Each row is in exactly one share.

    The longest row comes first, and each goes to the rank with the fewest tokens (Graham's rule for schedules, 1969). So the
    largest share has at most 4/3 of the tokens of the best possible one. A share keeps the order of its rows, and it is empty
    if there are more ranks than rows. The result depends on nothing but the arguments.
    """
    found: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        rank = min(range(ranks), key=lambda rank: (tokens[rank], len(found[rank]), rank))
        found[rank].append(row)
        tokens[rank] += lengths[row]
    return [sorted(share) for share in found]
