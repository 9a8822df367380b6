"""Chooses the rows and positions on which MERGE compares the merged model with the trained one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.data.masking.example import IGNORED, Example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.evaluation.compare import RowLoss

MAXIMUM_ROWS = 16
MAXIMUM_TOKENS = 1024
"""Tokens of all rows together, padded. MERGE scores them on a CPU, in several variants of the weights."""
MAXIMUM_LENGTH = 512


def choose_rows(
    examples: Sequence[Example], base: Sequence[RowLoss], tuned: Sequence[RowLoss]
) -> list[Example]:
    """Choose the rows on which the adapter has the largest effect for their length, within the budget of tokens.

    `base` and `tuned` are the losses of the examples. The more a row's loss has changed, the more it tells: a merge
    that loses the adapter shows in it. Long rows are cut, see `cut`. A row that would pad the others beyond the budget
    is left out.
    """
    windows = [cut(example) for example in examples]
    effects = [abs(after.nats - before.nats) for before, after in zip(base, tuned, strict=True)]
    order = sorted(range(len(examples)), key=lambda row: (-effects[row] / len(windows[row].input_ids), row))
    chosen: list[Example] = []
    longest = 0
    for row in order:
        padded = max(longest, len(windows[row].input_ids))
        if len(chosen) < MAXIMUM_ROWS and (len(chosen) + 1) * padded <= MAXIMUM_TOKENS:
            chosen.append(windows[row])
            longest = padded
    return chosen


def cut(example: Example) -> Example:
    """Return at most `MAXIMUM_LENGTH` tokens of a row, with its first supervised token and as many more as fit.

    Two models that compute the same function agree on any tokens, so the start of the row may be missing. At most half
    of the window is prompt.
    """
    length = len(example.input_ids)
    if length <= MAXIMUM_LENGTH:
        return example
    first = min(max(0, example.supervised[0] - MAXIMUM_LENGTH // 2), length - MAXIMUM_LENGTH)
    window = slice(first, first + MAXIMUM_LENGTH)
    # Nothing predicts the first token of the window.
    labels = [IGNORED, *example.labels[window][1:]]
    return Example(example.input_ids[window], labels, example.row)


def choose_positions(supervised: Sequence[int], limit: int) -> tuple[int, ...]:
    """Choose at most `limit` of the supervised positions, evenly spread from the first to the last."""
    count = min(limit, len(supervised))
    if count <= 1:
        return tuple(supervised[:count])
    last = len(supervised) - 1
    return tuple(supervised[round(index * last / (count - 1))] for index in range(count))
