"""Proves rows in order and in bounded memory, in several processes if there are many."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from finetune_trainer.cpu import available_cpus
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.dataset.workers import Proof, Workers, prove_values
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.rows.rejection import RowRejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from finetune_trainer.data.masking.masking import Masker
    from finetune_trainer.data.rows.reader import Row

_BATCH = 64
_BATCH_BYTES = 1 << 20
# Starting the workers takes about a second, as long as proving this many rows.
_ROWS_WITHOUT_WORKERS = 2500
_BYTES_WITHOUT_WORKERS = 8 << 20
_FEWEST_PROCESSES = 2
# Each holds a copy of the tokenizer: about 150 MB for a large vocabulary.
_MOST_PROCESSES = 4


@dataclass(frozen=True)
class ProvenRow:
    """One row with its conversation and examples, or the reason for its rejection.

    `content` is the object of a rejected row; None if it could not be read.
    """

    number: int
    outcome: list[Example] | RowRejected
    conversation: Conversation | None
    offset: int
    content: dict[str, Any] | None = None


def prove(
    rows: Iterable[Row],
    masker: Masker,
    parse: Callable[[dict[str, Any]], Conversation],
    processes: int | None = None,
) -> Iterator[ProvenRow]:
    """Yield every row with its examples or its rejection, in order; memory does not grow with the rows.

    `parse` turns a row's object into a conversation or raises RowRejected; it must be picklable. This process proves few
    rows itself. Many rows go to `processes` others, by default one for each available CPU. The number does not change
    the outcome. Raises StageError if a process dies.
    """
    count = min(available_cpus(), _MOST_PROCESSES) if processes is None else processes
    source, many = _looked_ahead(rows)
    if count < _FEWEST_PROCESSES or not many:
        for batch in _batches(source):
            yield from _joined(batch, prove_values(_values(batch), masker, parse))
        return
    sent: deque[list[Row]] = deque()

    def batches() -> Iterator[list[dict[str, Any]]]:
        for batch in _batches(source):
            sent.append(batch)
            yield _values(batch)

    with Workers(masker, parse, count) as workers:
        for proofs in workers.prove(batches()):
            yield from _joined(sent.popleft(), proofs)


def row_line(row: ProvenRow) -> str:
    """Return the examples or the rejection of one row as a line of JSON."""
    rejected = isinstance(row.outcome, RowRejected)
    examples = [] if isinstance(row.outcome, RowRejected) else row.outcome
    document: dict[str, Any] = {
        "row": row.number,
        "accepted": not rejected,
        "reason": row.outcome.reason.value if isinstance(row.outcome, RowRejected) else None,
        "examples": [{"input_ids": item.input_ids, "labels": item.labels} for item in examples],
    }
    if isinstance(row.outcome, RowRejected):
        document["field"] = row.outcome.field
        document["detail"] = row.outcome.detail
    return json.dumps(document, ensure_ascii=False)


def _looked_ahead(rows: Iterable[Row]) -> tuple[Iterator[Row], bool]:
    """Return the rows, and True if there are enough to justify starting processes."""
    source = iter(rows)
    head: list[Row] = []
    for row in source:
        head.append(row)
        if len(head) == _ROWS_WITHOUT_WORKERS or row.offset > _BYTES_WITHOUT_WORKERS:
            return chain(head, source), True
    return iter(head), False


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group rows into batches, with fewer rows if they are long."""
    batch: list[Row] = []
    start = 0
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH or row.offset - start > _BATCH_BYTES:
            yield batch
            batch, start = [], row.offset
    if batch:
        yield batch


def _values(batch: list[Row]) -> list[dict[str, Any]]:
    return [row.value for row in batch if not isinstance(row.value, RowRejected)]


def _joined(batch: list[Row], proofs: list[Proof]) -> Iterator[ProvenRow]:
    """Join the rows of a batch with the proofs of their objects; unreadable rows have no proof."""
    rest = iter(proofs)
    for row in batch:
        if isinstance(row.value, RowRejected):
            yield ProvenRow(row.number, row.value, None, row.offset)
            continue
        conversation, outcome = next(rest)
        if isinstance(outcome, RowRejected):
            yield ProvenRow(row.number, outcome, None, row.offset, row.value)
        else:
            yield ProvenRow(row.number, outcome, conversation, row.offset)
