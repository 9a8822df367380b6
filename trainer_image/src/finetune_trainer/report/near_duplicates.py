"""Rows that nearly repeat another, in one table or across two: MinHash, banding, then the exact similarity.

A row is the set of its content's token trigrams (see content.py), and two rows are as similar as the Jaccard index
of their sets: shared trigrams over all. Broder (1997) showed that the minimum of a hash over a set is equal for two
sets with just that probability. Here 128 minima come from one hash a trigram: the hash's first bits choose the
minimum that it competes for (one permutation hashing, Li et al. 2012), and minima without competitor borrow from
another (optimal densification, Shrivastava 2017). `b` bands of `r` minima make two rows of similarity `s`
candidates with probability 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive Datasets, section 3.4); `b` and `r`
are chosen so that this is at least 0.99 at the threshold. Every candidate's exact similarity decides, so
that a reported pair is one; at most about 1 % of the pairs right at the threshold are missed, fewer above it.
Work is bounded: a row is compared with the first 4 (a validation row: 8) of a band's rows that repeat none, and
after 16 (32) comparisons in vain with no more. Only data in which very many rows are candidates and few are similar
reaches that bound; it can hide pairs, never invent one.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

from finetune_trainer.report.content import Shape, mix, row_content
from finetune_trainer.report.table import TableView, TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SHINGLE = 3
MINIMA = 128
_LEAST_DETECTION = 0.99
_REPRESENTATIVES = 4
_VAIN_COMPARISONS = 16
_TOUCHED_BYTES = 128 << 20
# Reading an example here and there maps 16 pages around its ids and 16 around its labels.
_EXAMPLE_BYTES = 2 * 16 * 4096
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Pair:
    """A row (its number in its source), the one it nearly repeats, and their similarity."""

    row: int
    other: int
    similarity: float


@dataclass(frozen=True)
class Nearness:
    """How many training rows nearly repeat an earlier one, how many validation rows nearly stand in training.

    `original[r]` is the position of the training row that row `r` repeats, -1 for none; `copied[v]` that of the
    training row that is nearly validation row `v`.
    """

    original: NDArray[np.int64]
    copied: NDArray[np.int64]

    @property
    def near_duplicates(self) -> int:
        """Training rows that could be left out."""
        return int((self.original >= 0).sum())

    @property
    def leaked(self) -> int:
        """Validation rows with a near copy in training."""
        return int((self.copied >= 0).sum())


def banding(threshold: float) -> tuple[int, int]:
    """Bands and minima a band: the longest bands that find a pair at the threshold with probability 0.99."""
    for length in range(MINIMA, 1, -1):
        bands = MINIMA // length
        if detection(threshold, bands, length) >= _LEAST_DETECTION:
            return bands, length
    return MINIMA, 1


def detection(similarity: float, bands: int, length: int) -> float:
    """Probability that two rows of this similarity become candidates."""
    return float(1 - (1 - similarity**length) ** bands)


def find_near_copies(
    training: TokenTable,
    validation: TokenTable,
    shape: Shape,
    threshold: float,
    folder: Path,
    on_rows: Callable[[int], None],
) -> Nearness:
    """Compare all rows of both tables at the Jaccard similarity `threshold`.

    A file of 4 bytes a row and band (at most 0.5 kB a row; 84 bytes at the default threshold) lies in `folder`
    meanwhile, without a name; memory holds about 40 bytes a row. `on_rows` is told the rows sketched so far. Raises
    OSError when the folder cannot hold the file.
    """
    bands, length = banding(threshold)
    original = np.full(training.rows, -1, np.int64)
    copied = np.full(validation.rows, -1, np.int64)
    vain = np.zeros(training.rows, np.uint8)
    vain_validation = np.zeros(validation.rows, np.uint8)
    with (
        tempfile.TemporaryFile(dir=folder) as training_file,
        tempfile.TemporaryFile(dir=folder) as validation_file,
    ):
        sizes = _sketch(training, shape, bands, length, training_file.fileno(), on_rows)
        _sketch(validation, shape, bands, length, validation_file.fileno(), lambda _: None)
        for band in range(bands):
            keys = _read_band(training_file.fileno(), band, training.rows)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            start = 0
            while start < order.size:
                start = _mark_duplicates(
                    training.view, shape, threshold, keys, order, start, sizes, original, vain
                )
                training.release()
            wanted = _read_band(validation_file.fileno(), band, validation.rows)
            start = 0
            while start < wanted.size:
                start = _mark_leaks(
                    (training.view, validation.view), shape, threshold, keys, order, start, wanted, copied,
                    vain_validation,
                )  # fmt: skip
                training.release()
                validation.release()
    return Nearness(original, copied)


def exact_pairs(
    table: TokenTable, others: TokenTable, found: NDArray[np.int64], shape: Shape, count: int
) -> list[Pair]:
    """The first `count` pairs of `found` (position of a row of `table` to a row of `others`) with their similarity."""
    pairs = []
    for position in np.flatnonzero(found >= 0)[:count]:
        similarity = _similarity(
            _shingles(table.view, position, shape), _shingles(others.view, found[position], shape)
        )
        pairs.append(
            Pair(
                int(table.row_numbers[position]),
                int(others.row_numbers[found[position]]),
                round(float(similarity), 4),
            )
        )
    return pairs


def _sketch(
    table: TokenTable, shape: Shape, bands: int, length: int, file: int, on_rows: Callable[[int], None]
) -> NDArray[np.int32]:
    """Write the bands' keys, one band after the other; return each row's number of shingles."""
    sizes = np.empty(table.rows, np.int32)
    for start, end in table.parts():
        keys = np.empty((bands, end - start), np.uint32)
        _sketch_rows(table.view, start, end, shape, length, keys, sizes[start:end])
        table.release()
        for band in range(bands):
            _write_all(file, keys[band].tobytes(), (band * table.rows + start) * 4)
        on_rows(end)
    return sizes


def _write_all(file: int, content: bytes, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest = rest[written:]
        offset += written


def _read_band(file: int, band: int, rows: int) -> NDArray[np.uint32]:
    keys = np.empty(rows, np.uint32)
    if not rows:
        return keys
    target = keys.data.cast("B")
    offset = band * rows * 4
    done = 0
    while done < len(target):
        read = os.preadv(file, [target[done:]], offset + done)
        if not read:
            raise OSError("the file of band keys must be whole, found it cut off")
        done += read
    return keys


@numba.njit(nogil=True, cache=True)
def _row_tokens(view: TableView, row: int) -> int:
    total = 0
    for example in range(view.first[row], view.first[row + 1]):
        total += view.lengths[example]
    return total


@numba.njit(nogil=True, cache=True)
def _row_bytes(view: TableView, row: int) -> int:
    """Bytes of memory that reading a row may map."""
    examples = view.first[row + 1] - view.first[row]
    return int(8 * _row_tokens(view, row) + _EXAMPLE_BYTES * examples)


@numba.njit(nogil=True, cache=True)
def _hash_shingles(content: NDArray[np.int32], size: int, out: NDArray[np.uint64]) -> int:
    """Hash every run of 3 ids; a content of fewer is one shingle."""
    if size == 0:
        return 0
    width = min(SHINGLE, size)
    for place in range(size - width + 1):
        value = np.uint64(width)
        for position in range(place, place + width):
            value = mix(value ^ np.uint64(np.uint32(content[position])))
        out[place] = value
    return size - width + 1


@numba.njit(nogil=True, cache=True)
def _shingles(view: TableView, row: int, shape: Shape) -> NDArray[np.uint64]:
    """Sorted distinct shingle hashes of a row."""
    content = np.empty(2 * _row_tokens(view, row), np.int32)
    hashes = np.empty(content.size, np.uint64)
    count = _hash_shingles(content, row_content(view, row, shape, content), hashes)
    hashes = np.sort(hashes[:count])
    distinct = 0
    for place in range(count):
        if place == 0 or hashes[place] != hashes[place - 1]:
            hashes[distinct] = hashes[place]
            distinct += 1
    return hashes[:distinct].copy()


@numba.njit(nogil=True, cache=True)
def _similarity(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> float:
    """Jaccard index of two sorted sets; 0 where one is empty."""
    if left.size == 0 or right.size == 0:
        return 0.0
    i = j = shared = 0
    while i < left.size and j < right.size:
        if left[i] == right[j]:
            shared += 1
            i += 1
            j += 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return shared / (left.size + right.size - shared)


@numba.njit(nogil=True, cache=True)
def _sketch_rows(
    view: TableView,
    start: int,
    end: int,
    shape: Shape,
    length: int,
    keys: NDArray[np.uint32],
    sizes: NDArray[np.int32],
) -> None:
    """Write the key of every band of rows [start, end); a row without content has size 0 and no meaningful key."""
    largest = 0
    for row in range(start, end):
        largest = max(largest, _row_tokens(view, row))
    content = np.empty(2 * largest, np.int32)
    hashes = np.empty(2 * largest, np.uint64)
    minima = np.empty(MINIMA, np.uint64)
    filled = np.empty(MINIMA, np.uint64)
    for row in range(start, end):
        count = _hash_shingles(content, row_content(view, row, shape, content), hashes)
        sizes[row - start] = count
        minima[:] = _EMPTY
        for place in range(count):
            value = hashes[place]
            bin_number = value & np.uint64(MINIMA - 1)
            minima[bin_number] = min(minima[bin_number], value)
        for bin_number in range(MINIMA):
            value = minima[bin_number]
            attempt = np.uint64(0)
            while value == _EMPTY and count:
                attempt += np.uint64(1)
                value = minima[mix(np.uint64(bin_number) ^ (attempt << np.uint64(8))) & np.uint64(MINIMA - 1)]
            filled[bin_number] = value
        for band in range(keys.shape[0]):
            key = np.uint64(band)
            for place in range(band * length, (band + 1) * length):
                key = mix(key ^ filled[place])
            keys[band, row - start] = np.uint32(key >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def _mark_duplicates(
    view: TableView,
    shape: Shape,
    threshold: float,
    keys: NDArray[np.uint32],
    order: NDArray[np.int64],
    start: int,
    sizes: NDArray[np.int32],
    original: NDArray[np.int64],
    vain: NDArray[np.uint8],
) -> int:
    """Look for originals among rows with equal keys, from position `start` of a group on.

    Returns where to go on, at the start of a group, after about 128 MiB of the file.
    """
    touched = 0
    sets = [np.empty(0, np.uint64) for _ in range(_REPRESENTATIVES)]
    rows = np.empty(_REPRESENTATIVES, np.int64)
    while start < order.size and touched < _TOUCHED_BYTES:
        end = start + 1
        while end < order.size and keys[end] == keys[start]:
            end += 1
        count = 0
        for place in range(start, end if end - start > 1 else start):
            row = order[place]
            if original[row] >= 0 or sizes[row] == 0 or vain[row] >= _VAIN_COMPARISONS:
                continue
            mine = _shingles(view, row, shape)
            touched += _row_bytes(view, row)
            for other in range(count):
                if _similarity(mine, sets[other]) >= threshold:
                    original[row] = rows[other]
                    break
                vain[row] += 1
            if original[row] < 0 and count < _REPRESENTATIVES:
                sets[count] = mine
                rows[count] = row
                count += 1
        start = end
    return start


@numba.njit(nogil=True, cache=True)
def _mark_leaks(
    views: tuple[TableView, TableView],
    shape: Shape,
    threshold: float,
    keys: NDArray[np.uint32],
    order: NDArray[np.int64],
    start: int,
    wanted: NDArray[np.uint32],
    copied: NDArray[np.int64],
    vain: NDArray[np.uint8],
) -> int:
    """Look for training rows near validation rows from `start` on; return where to go on, as above."""
    touched = 0
    while start < wanted.size and touched < _TOUCHED_BYTES:
        row = start
        start += 1
        if copied[row] >= 0 or vain[row] >= 2 * _VAIN_COMPARISONS:
            continue
        place = np.searchsorted(keys, wanted[row])
        if place == keys.size or keys[place] != wanted[row]:
            continue
        mine = _shingles(views[1], row, shape)
        tried = 0
        while mine.size and place < keys.size and keys[place] == wanted[row] and tried < 2 * _REPRESENTATIVES:
            other = _shingles(views[0], order[place], shape)
            touched += _row_bytes(views[0], order[place])
            if _similarity(mine, other) >= threshold:
                copied[row] = order[place]
                break
            vain[row] += 1
            tried += 1
            place += 1
    return start
