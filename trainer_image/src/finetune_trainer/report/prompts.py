"""Texts of a table's rows: the users' prompts without what the template writes around them, and the answers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.data.masking.grammar import sentinel
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.report.content import Shape, behind_opening, first_answer, mix, user_text
from finetune_trainer.report.table import TableView, TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

    from finetune_trainer.data.chat_template.template import ChatTemplate

# What is compared of a longer prompt.
_PROMPT_TOKENS = 4096


class Frame(NamedTuple):
    """Ordinary text that the template writes right before and right behind a user's text."""

    before: str = ""
    behind: str = ""

    def strip(self, text: str) -> str:
        """Return a user's text without the frame, or the part of it that is there, and without space around it."""
        for length in range(min(len(self.before), len(text)), 0, -1):
            if self.before.endswith(text[:length]):
                text = text[length:]
                break
        for length in range(min(len(self.behind), len(text)), 0, -1):
            if self.behind.startswith(text[-length:]):
                text = text[:-length]
                break
        return text.strip()


def user_frame(template: ChatTemplate) -> Frame:
    """Frame of this template; an empty one where it takes no user message alone."""
    word = sentinel(0)
    try:
        text = template.render([{"role": "user", "content": word}], None, generation=True)
    except RowRejected:
        return Frame()
    before, _, behind = text.partition(word)
    ids = template.encode([before, behind])
    cut = max((place + 1 for place, token in enumerate(ids[0]) if token in template.special_ids), default=0)
    ends = min((place for place, token in enumerate(ids[1]) if token in template.special_ids), default=None)
    return Frame(template.decode(ids[0][cut:]), template.decode(ids[1][:ends]))


class RowTexts(NamedTuple):
    """The opening prompt, without what it shares with many others, and the answers of one row, as text."""

    prompt: str
    answer: str


class TextReader:
    """Reads texts out of a table. `decode` gives ids' text, `special_ids` are left out of answers."""

    def __init__(
        self,
        table: TokenTable,
        shape: Shape,
        decode: Callable[[list[int]], str],
        special_ids: Collection[int],
        frame: Frame,
    ) -> None:
        self._table = table
        self._shape = shape
        self._decode = decode
        self._special = frozenset(special_ids)
        self._frame = frame

    def row(self, position: int) -> RowTexts:
        """Texts of the row at `position`; answers of several turns are joined by line feeds."""
        view = self._table.view
        first = int(view.first[position])
        start = int(view.ids_at[first])
        begin, end = user_text(view.words, start, start + int(first_answer(view, first)), self._shape)
        begin = int(behind_opening(view.words, begin, end, self._shape))
        answers = [
            self._decode([token for token in run if token not in self._special])
            for example in range(first, int(view.first[position + 1]))
            for learned, run in self.runs(example)
            if learned
        ]
        return RowTexts(self._text(begin, end), "\n".join(answers))

    def runs(self, example: int) -> Iterator[tuple[bool, list[int]]]:
        """Runs of an example's ids that are learned, or not, in order."""
        ids, labels = self._table.ids(example), self._table.labels(example)
        learned = labels != IGNORED
        edges = [0, *(np.flatnonzero(learned[1:] != learned[:-1]) + 1).tolist(), ids.size]
        for start, end in pairwise(edges):
            yield bool(learned[start]), ids[start:end].tolist()

    def prompts(self, start: int, end: int) -> Iterator[tuple[int, list[str]]]:
        """Every prompt of rows [start, end) as (row number, [text]); with a second text where it has a shared opening."""
        for row, begin, behind, stop in _prompt_spans(self._table.view, start, end, self._shape).tolist():
            texts = [self._text(begin, stop)]
            if behind > begin:
                texts.append(self._text(behind, stop))
            yield int(self._table.row_numbers[row]), texts

    def _text(self, begin: int, end: int) -> str:
        ids = self._table.view.words[begin : min(end, begin + _PROMPT_TOKENS)].tolist()
        return self._frame.strip(self._decode(ids)) if ids else ""


@numba.njit(nogil=True, cache=True)
def _prompt_spans(view: TableView, start: int, end: int, shape: Shape) -> NDArray[np.int64]:
    """(row, begin, behind the opening, end) of the user's text of every prompt of rows [start, end)."""
    out = np.empty((max(16, 2 * (view.first[end] - view.first[start])), 4), np.int64)
    count = 0
    for row in range(start, end):
        for example in range(view.first[row], view.first[row + 1]):
            ids, labels, length = view.ids_at[example], view.labels_at[example], view.lengths[example]
            position = 0
            while position < length:
                begin = position
                while position < length and view.words[labels + position] < 0:
                    position += 1
                if position == length:
                    break
                if position > begin:
                    first, stop = user_text(view.words, ids + begin, ids + position, shape)
                    if count == out.shape[0]:
                        grown = np.empty((2 * count, 4), np.int64)
                        grown[:count] = out
                        out = grown
                    if stop > first:
                        out[count, 0] = row
                        out[count, 1] = first
                        out[count, 2] = behind_opening(view.words, first, stop, shape)
                        out[count, 3] = stop
                        count += 1
                while position < length and view.words[labels + position] >= 0:
                    position += 1
    return out[:count]


@numba.njit(nogil=True, cache=True)
def row_hashes(view: TableView, start: int, end: int, shape: Shape) -> NDArray[np.uint64]:
    """Hash of the learned ids and hash of the opening prompt's user text, for rows [start, end): shape (n, 2)."""
    out = np.empty((end - start, 2), np.uint64)
    for row in range(start, end):
        answer = np.uint64(0)
        for example in range(view.first[row], view.first[row + 1]):
            ids, labels = view.ids_at[example], view.labels_at[example]
            inside = False
            for position in range(view.lengths[example]):
                if view.words[labels + position] >= 0:
                    answer = mix(answer ^ np.uint64(view.words[ids + position]))
                    inside = True
                elif inside:
                    # Two answers are not one answer that reads the same.
                    answer = mix(answer ^ np.uint64(1 << 40))
                    inside = False
        first = view.first[row]
        begin = view.ids_at[first]
        begin, stop = user_text(view.words, begin, begin + first_answer(view, first), shape)
        prompt = np.uint64(0)
        for position in range(begin, stop):
            prompt = mix(prompt ^ np.uint64(view.words[position]))
        out[row - start, 0] = answer
        out[row - start, 1] = prompt
    return out


@numba.njit(nogil=True, cache=True)
def supervised_counts(view: TableView, start: int, end: int) -> NDArray[np.int32]:
    """Number of learned tokens of each example of rows [start, end)."""
    first = view.first[start]
    out = np.zeros(view.first[end] - first, np.int32)
    for example in range(first, view.first[end]):
        labels = view.labels_at[example]
        for position in range(labels, labels + view.lengths[example]):
            out[example - first] += view.words[position] >= 0
    return out
