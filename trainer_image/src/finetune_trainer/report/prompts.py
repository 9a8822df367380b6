"""Texts of a table's rows: the answers, and the users' prompts without the template's text around them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.data.masking.sentinels import sentinel
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.report.content import Boilerplate, after_opening, first_answer, mix, user_text
from finetune_trainer.report.table import TableView, TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

    from finetune_trainer.data.chat_template.template import ChatTemplate

# A longer prompt is compared by its beginning.
_PROMPT_TOKENS = 4096


class Frame(NamedTuple):
    """Ordinary text that the template writes directly before and after a user's text."""

    before: str = ""
    after: str = ""

    def strip(self, text: str) -> str:
        """Return a user's text without the frame and without surrounding space. A part of the frame is removed too."""
        for length in range(min(len(self.before), len(text)), 0, -1):
            if self.before.endswith(text[:length]):
                text = text[length:]
                break
        for length in range(min(len(self.after), len(text)), 0, -1):
            if self.after.startswith(text[-length:]):
                text = text[:-length]
                break
        return text.strip()


def user_frame(template: ChatTemplate) -> Frame:
    """Return the frame of a template; it is empty if the template rejects a single user message."""
    word = sentinel(0)
    try:
        text = template.render([{"role": "user", "content": word}], None, generation=True)
    except RowRejected:
        return Frame()
    before, _, after = text.partition(word)
    ids = template.encode([before, after])
    cut = max((place + 1 for place, token in enumerate(ids[0]) if token in template.special_ids), default=0)
    ends = min((place for place, token in enumerate(ids[1]) if token in template.special_ids), default=None)
    return Frame(template.decode(ids[0][cut:]), template.decode(ids[1][:ends]))


class RowTexts(NamedTuple):
    """Texts of one row: the opening prompt without a shared opening, and the answers."""

    prompt: str
    answer: str


class TextReader:
    """Reads texts from a table. `decode` gives the text of ids; answers leave out `special_ids`."""

    def __init__(
        self,
        table: TokenTable,
        boilerplate: Boilerplate,
        decode: Callable[[list[int]], str],
        special_ids: Collection[int],
        frame: Frame,
    ) -> None:
        self._table = table
        self._boilerplate = boilerplate
        self._decode = decode
        self._special = frozenset(special_ids)
        self._frame = frame

    def row(self, position: int) -> RowTexts:
        """Return the texts of the row at `position`; line feeds join the answers of several turns."""
        view = self._table.view
        first = int(view.first[position])
        start = int(view.ids_at[first])
        begin, end = user_text(view.words, start, start + int(first_answer(view, first)), self._boilerplate)
        begin = int(after_opening(view.words, begin, end, self._boilerplate))
        answers = [
            self._decode([token for token in run if token not in self._special])
            for example in range(first, int(view.first[position + 1]))
            for learned, run in self.runs(example)
            if learned
        ]
        return RowTexts(self._text(begin, end), "\n".join(answers))

    def runs(self, example: int) -> Iterator[tuple[bool, list[int]]]:
        """Yield the runs of an example's ids in order, each with True if it is learned."""
        ids, labels = self._table.ids(example), self._table.labels(example)
        learned = labels != IGNORED
        edges = [0, *(np.flatnonzero(learned[1:] != learned[:-1]) + 1).tolist(), ids.size]
        for start, end in pairwise(edges):
            yield bool(learned[start]), ids[start:end].tolist()

    def prompts(self, start: int, end: int) -> Iterator[tuple[int, list[str]]]:
        """Yield (row number, texts) for every prompt of rows [start, end).

        The first text is the whole prompt. A prompt with a shared opening has a second text without it.
        """
        for row, begin, rest, stop in _prompt_spans(self._table.view, start, end, self._boilerplate).tolist():
            texts = [self._text(begin, stop)]
            if rest > begin:
                texts.append(self._text(rest, stop))
            yield int(self._table.row_numbers[row]), texts

    def _text(self, begin: int, end: int) -> str:
        ids = self._table.view.words[begin : min(end, begin + _PROMPT_TOKENS)].tolist()
        return self._frame.strip(self._decode(ids)) if ids else ""


@numba.njit(nogil=True, cache=True)
def _prompt_spans(view: TableView, start: int, end: int, boilerplate: Boilerplate) -> NDArray[np.int64]:
    """Return (row, begin, position after the opening, end) of every user's text in rows [start, end)."""
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
                    first, stop = user_text(view.words, ids + begin, ids + position, boilerplate)
                    if count == out.shape[0]:
                        grown = np.empty((2 * count, 4), np.int64)
                        grown[:count] = out
                        out = grown
                    if stop > first:
                        out[count, 0] = row
                        out[count, 1] = first
                        out[count, 2] = after_opening(view.words, first, stop, boilerplate)
                        out[count, 3] = stop
                        count += 1
                while position < length and view.words[labels + position] >= 0:
                    position += 1
    return out[:count]


@numba.njit(nogil=True, cache=True)
def row_hashes(view: TableView, start: int, end: int, boilerplate: Boilerplate) -> NDArray[np.uint64]:
    """Hash the learned ids and the opening prompt's user text of rows [start, end): an array of shape (n, 2)."""
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
                    # Two answers must differ from one answer with the same text.
                    answer = mix(answer ^ np.uint64(1 << 40))
                    inside = False
        first = view.first[row]
        begin = view.ids_at[first]
        begin, stop = user_text(view.words, begin, begin + first_answer(view, first), boilerplate)
        prompt = np.uint64(0)
        for position in range(begin, stop):
            prompt = mix(prompt ^ np.uint64(view.words[position]))
        out[row - start, 0] = answer
        out[row - start, 1] = prompt
    return out


@numba.njit(nogil=True, cache=True)
def supervised_counts(view: TableView, start: int, end: int) -> NDArray[np.int32]:
    """Count the learned tokens of each example of rows [start, end)."""
    first = view.first[start]
    out = np.zeros(view.first[end] - first, np.int32)
    for example in range(first, view.first[end]):
        labels = view.labels_at[example]
        for position in range(labels, labels + view.lengths[example]):
            out[example - first] += view.words[position] >= 0
    return out
