"""Finds the user's text and the answers of a row, without template, system prompt and markup.

A long shared system prompt would make all rows similar, so statistics must not use whole examples. The shared tokens
are learned from a sample of the rows, so that no list of templates is needed:

- Control tokens split an example into pieces. A piece that at least half of the sampled rows hold unchanged (a role
  header, a shared system prompt) is markup. The user's text is the last piece of a prompt that is not markup.
- An opening of 16 or more tokens is shared if at least 20 % of the sampled prompts, and at least 20 prompts, begin with
  it. It is an instruction, or a system prompt that the template does not separate with a control token. It is left
  out if some text remains. It ends where fewer than four fifths of its prompts continue in the same way, unless one
  continuation is shared for another 16 tokens. So prompts in a few phrasings keep their first words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from finetune_trainer.report.table import ROWS_BETWEEN_RELEASES, TableView, TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

SEPARATOR = -2
"""Separates the parts of a row's content."""
CONTROL = -3
"""Canonical id of every control token."""
_DROPPED = -1
_MARKUP_FRACTION = 0.5
_OPENING_FRACTION = 0.2
_OPENING_ROWS = 20
_OPENING_TOKENS = 16
_OPENING_LIMIT = 2048
_STAYING_FRACTION = 0.8
_UNDECODABLE = "\ufffd"


class Boilerplate(NamedTuple):
    """The tokens that rows share, in the form that compiled loops take.

    `canonical` maps a token id to one id for all tokens with the same text, without regard to case and surrounding
    space. It is -1 for white space and -3 for control tokens. `markup` holds the sorted hashes of the markup pieces,
    `openings` those of the shared openings of every length from 16 tokens on. `known` is false if there are too few
    rows to find shared tokens: then the longest piece is the user's text.
    """

    canonical: NDArray[np.int32]
    markup: NDArray[np.uint64]
    openings: NDArray[np.uint64]
    known: bool


@numba.njit(nogil=True, cache=True)
def mix(value: np.uint64) -> np.uint64:
    """Scramble 64 bits (the finalizer of splitmix64, Steele et al. 2014)."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _contains(sorted_hashes: NDArray[np.uint64], value: np.uint64) -> bool:
    place = np.searchsorted(sorted_hashes, value)
    return bool(place < sorted_hashes.size and sorted_hashes[place] == value)


@numba.njit(nogil=True, cache=True)
def _hash_of(words: NDArray[np.int32], start: int, end: int) -> np.uint64:
    value = np.uint64(0)
    for position in range(start, end):
        value = mix(value ^ np.uint64(words[position]))
    return value


@numba.njit(nogil=True, cache=True)
def user_text(words: NDArray[np.int32], start: int, end: int, boilerplate: Boilerplate) -> tuple[int, int]:
    """Return the bounds of the user's text in a prompt's ids `words[start:end]`; both are `end` if it has none."""
    best_start, best_end = end, end
    stop = end
    while stop > start:
        while stop > start and boilerplate.canonical[words[stop - 1]] == CONTROL:
            stop -= 1
        begin = stop
        while begin > start and boilerplate.canonical[words[begin - 1]] != CONTROL:
            begin -= 1
        if begin == stop:
            break
        if boilerplate.known:
            if not _contains(boilerplate.markup, _hash_of(words, begin, stop)):
                return begin, stop
        elif stop - begin > best_end - best_start:
            best_start, best_end = begin, stop
        stop = begin
    return best_start, best_end


@numba.njit(nogil=True, cache=True)
def after_opening(words: NDArray[np.int32], start: int, end: int, boilerplate: Boilerplate) -> int:
    """Return the position after a shared opening; `start` without one, or if no text would remain."""
    value = np.uint64(0)
    shared = start
    for position in range(start, min(end, start + _OPENING_LIMIT)):
        value = mix(value ^ np.uint64(words[position]))
        if position - start + 1 >= _OPENING_TOKENS:
            if not _contains(boilerplate.openings, value):
                break
            shared = position + 1
    return shared if shared < end else start


@numba.njit(nogil=True, cache=True)
def first_answer(view: TableView, example: int) -> int:
    """Return the offset of an example's first learned token."""
    labels = view.labels_at[example]
    offset = 0
    while offset < view.lengths[example] and view.words[labels + offset] < 0:
        offset += 1
    return offset


@numba.njit(nogil=True, cache=True)
def row_content(view: TableView, row: int, boilerplate: Boilerplate, out: NDArray[np.int32]) -> int:
    """Write the canonical ids of a row's user texts and answers, separated by SEPARATOR; return their number.

    `out` needs space for the row's tokens and one more for each run; twice the number of tokens is always enough.
    """
    count = 0
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
                start, end = user_text(view.words, ids + begin, ids + position, boilerplate)
                count = _append(
                    view.words,
                    after_opening(view.words, start, end, boilerplate),
                    end,
                    boilerplate,
                    out,
                    count,
                )
            begin = position
            while position < length and view.words[labels + position] >= 0:
                position += 1
            count = _append(view.words, ids + begin, ids + position, boilerplate, out, count)
    return count


@numba.njit(nogil=True, cache=True)
def _append(
    words: NDArray[np.int32],
    start: int,
    end: int,
    boilerplate: Boilerplate,
    out: NDArray[np.int32],
    count: int,
) -> int:
    before = count
    for position in range(start, end):
        token = boilerplate.canonical[words[position]]
        if token >= 0:
            out[count] = token
            count += 1
    if count > before:
        out[count] = SEPARATOR
        count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _mark_seen(view: TableView, start: int, end: int, seen: NDArray[np.bool_]) -> int:
    """Mark the ids of rows [start, end) that fit into `seen`; return the largest id of these rows."""
    largest = -1
    for example in range(view.first[start], view.first[end]):
        ids = view.ids_at[example]
        for position in range(ids, ids + view.lengths[example]):
            token = view.words[position]
            largest = max(largest, token)
            if token < seen.size:
                seen[token] = True
    return largest


def learn_boilerplate(
    tables: Collection[TokenTable],
    sample: NDArray[np.int64],
    decode: Callable[[list[int]], str],
    special_ids: Collection[int],
) -> Boilerplate:
    """Learn the shared tokens from the rows `sample` of the first table; `decode` gives the text of ids."""
    (training, *_) = tables
    canonical = _canonical_ids(_seen_ids(tables), decode, special_ids)
    nothing = np.empty(0, np.uint64)
    known = sample.size >= 2
    if not known:
        return Boilerplate(canonical, nothing, nothing, known=False)
    view = training.view
    pieces: list[NDArray[np.uint64]] = []
    prompts: list[tuple[int, int]] = []
    for number, row in enumerate(sample):
        if number % ROWS_BETWEEN_RELEASES == 0:
            training.release()
        example = view.first[row]
        start = int(view.ids_at[example])
        end = start + int(first_answer(view, example))
        prompts.append((start, end))
        pieces.append(np.unique(_piece_hashes(view.words, start, end, canonical)))
    hashes, counts = np.unique(np.concatenate(pieces), return_counts=True)
    markup = hashes[counts >= max(2, _MARKUP_FRACTION * sample.size)]
    boilerplate = Boilerplate(canonical, markup, nothing, known=True)
    openings = []
    for number, prompt in enumerate(prompts):
        if number % ROWS_BETWEEN_RELEASES == 0:
            training.release()
        openings.append(_opening_hashes(view.words, *user_text(view.words, *prompt, boilerplate)))
    least = max(_OPENING_ROWS, _OPENING_FRACTION * sample.size)
    hashes, counts = np.unique(np.concatenate(openings), return_counts=True)
    ends = [_opening_end(counts[np.searchsorted(hashes, beginning)], least) for beginning in openings]
    shared = np.unique(np.concatenate([item[:end] for item, end in zip(openings, ends, strict=True)]))
    training.release()
    return boilerplate._replace(openings=shared)


def _opening_end(counts: NDArray[np.int64], least: float) -> int:
    """Return how many of a prompt's beginnings are part of a shared opening.

    The first beginning has 16 tokens, each next one has one token more. `counts` holds the number of prompts with
    that beginning; a beginning of fewer than `least` prompts is not shared.
    """
    end = 0
    while end < counts.size:
        # Counts never grow, so the beginnings that pass are the first ones.
        length = int((counts[end:] >= max(least, _STAYING_FRACTION * counts[end])).sum())
        if length < (_OPENING_TOKENS if end else 1):
            break
        end += length
    return end


def _seen_ids(tables: Collection[TokenTable]) -> NDArray[np.int64]:
    seen = np.zeros(1 << 18, np.bool_)
    for table in tables:
        for start, end in table.parts():
            largest = _mark_seen(table.view, start, end, seen)
            if largest >= seen.size:
                seen = np.concatenate((seen, np.zeros(largest + 1 - seen.size, np.bool_)))
                _mark_seen(table.view, start, end, seen)
            table.release()
    return np.flatnonzero(seen)


def _canonical_ids(
    ids: NDArray[np.int64], decode: Callable[[list[int]], str], special_ids: Collection[int]
) -> NDArray[np.int32]:
    special = frozenset(special_ids)
    canonical = np.full(int(ids[-1]) + 1 if ids.size else 1, _DROPPED, np.int32)
    first_of: dict[str, int] = {}
    for token in ids.tolist():
        if token in special:
            canonical[token] = CONTROL
            continue
        text = decode([token])
        # A part of a character has no text to compare.
        key = f"{_UNDECODABLE}{token}" if _UNDECODABLE in text else text.strip().casefold()
        canonical[token] = first_of.setdefault(key, token) if key else _DROPPED
    return canonical


@numba.njit(nogil=True, cache=True)
def _piece_hashes(
    words: NDArray[np.int32], start: int, end: int, canonical: NDArray[np.int32]
) -> NDArray[np.uint64]:
    out = np.empty(end - start, np.uint64)
    count = 0
    begin = start
    for position in range(start, end + 1):
        if position == end or canonical[words[position]] == CONTROL:
            if position > begin:
                out[count] = _hash_of(words, begin, position)
                count += 1
            begin = position + 1
    return out[:count]


@numba.njit(nogil=True, cache=True)
def _opening_hashes(words: NDArray[np.int32], start: int, end: int) -> NDArray[np.uint64]:
    out = np.empty(max(0, min(end - start, _OPENING_LIMIT) - _OPENING_TOKENS + 1), np.uint64)
    if not out.size:
        return out
    value = np.uint64(0)
    for position in range(start, start + out.size + _OPENING_TOKENS - 1):
        value = mix(value ^ np.uint64(words[position]))
        if position - start + 1 >= _OPENING_TOKENS:
            out[position - start + 1 - _OPENING_TOKENS] = value
    return out
