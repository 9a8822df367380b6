"""Near-duplicate rows in one table or across two: MinHash, banding, then the exact similarity.

A row is the set of its content's token trigrams (see content.py). The similarity of two rows is the Jaccard index of
their sets: shared trigrams over all trigrams. Broder (1997) showed that two sets have the same minimum of a hash with
exactly that probability. Here 128 minima come from one hash a trigram. The hash's first bits choose the minimum that it
competes for (one permutation hashing, Li et al. 2012). A minimum without a competitor borrows from another one (optimal
densification, Shrivastava 2017). With `b` bands of `r` minima, two rows of similarity `s` become candidates with
probability 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive Datasets, section 3.4). `b` and `r` are chosen so that
it is at least 0.99 at the threshold. The exact similarity of every candidate decides, so every reported pair is real. At
most about 1 % of the pairs at the threshold are missed, and fewer above it. The work is bounded. A row is compared with
the first 4 rows of a band that have no original themselves (a validation row: 8). After 16 misses (32) it is compared
with no more. Only data with very many candidates and few similar rows reaches this bound. The bound can hide pairs but
never invents one.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

from finetune_trainer.report.content import Boilerplate, mix, row_content
from finetune_trainer.report.table import TableView, TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SHINGLE = 3
MINIMA = 128
_LEAST_DETECTION = 0.99
_REPRESENTATIVES = 4
_MAXIMUM_MISSES = 16
_TOUCHED_BYTES = 128 << 20
# Reading an example here and there maps 16 pages around its ids and 16 around its labels.
_EXAMPLE_BYTES = 2 * 16 * 4096
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Pair:
    """The numbers of two similar rows in their sources, and their similarity."""

    row: int
    other: int
    similarity: float


@dataclass(frozen=True)
class NearMatches:
    """The near-duplicates among the training rows, and the validation rows with a near-duplicate in training.

    `duplicate_of[r]` is the position of the earlier training row that is similar to training row `r`, -1 for none.
    `leaked_from[v]` is the position of the training row that is similar to validation row `v`, -1 for none.
    """

    duplicate_of: NDArray[np.int64]
    leaked_from: NDArray[np.int64]

    @property
    def near_duplicates(self) -> int:
        """Number of training rows that are similar to an earlier one."""
        return int((self.duplicate_of >= 0).sum())

    @property
    def leaked(self) -> int:
        """Number of validation rows that are similar to a training row."""
        return int((self.leaked_from >= 0).sum())


def banding(threshold: float) -> tuple[int, int]:
    """Return the number of bands and of minima a band: the longest bands with detection 0.99 at the threshold."""
    for length in range(MINIMA, 1, -1):
        bands = MINIMA // length
        if detection(threshold, bands, length) >= _LEAST_DETECTION:
            return bands, length
    return MINIMA, 1


def detection(similarity: float, bands: int, length: int) -> float:
    """Return the probability that two rows of this similarity become candidates."""
    return float(1 - (1 - similarity**length) ** bands)


def find_near_copies(
    training: TokenTable,
    validation: TokenTable,
    boilerplate: Boilerplate,
    threshold: float,
    folder: Path,
    on_rows: Callable[[int], None],
) -> NearMatches:
    """Find all pairs of rows with a Jaccard similarity of at least `threshold`.

    A temporary file without a name lies in `folder` during the call. It has 4 bytes a row and band: at most 0.5 kB a row,
    and 84 bytes at the default threshold. Memory holds about 40 bytes a row. `on_rows` receives the number of sketched
    rows. Raises OSError if the folder cannot hold the file.
    """
    bands, length = banding(threshold)
    duplicate_of = np.full(training.rows, -1, np.int64)
    leaked_from = np.full(validation.rows, -1, np.int64)
    misses = np.zeros(training.rows, np.uint8)
    validation_misses = np.zeros(validation.rows, np.uint8)
    with (
        tempfile.TemporaryFile(dir=folder) as training_file,
        tempfile.TemporaryFile(dir=folder) as validation_file,
    ):
        sizes = _sketch(training, boilerplate, bands, length, training_file.fileno(), on_rows)
        _sketch(validation, boilerplate, bands, length, validation_file.fileno(), lambda _: None)
        for band in range(bands):
            keys = _read_band(training_file.fileno(), band, training.rows)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            start = 0
            while start < order.size:
                start = _mark_duplicates(
                    training.view, boilerplate, threshold, keys, order, start, sizes, duplicate_of, misses
                )
                training.release()
            wanted = _read_band(validation_file.fileno(), band, validation.rows)
            start = 0
            while start < wanted.size:
                start = _mark_leaks(
                    (training.view, validation.view), boilerplate, threshold, keys, order, start, wanted, leaked_from,
                    validation_misses,
                )  # fmt: skip
                training.release()
                validation.release()
    return NearMatches(duplicate_of, leaked_from)


def exact_pairs(
    table: TokenTable, others: TokenTable, found: NDArray[np.int64], boilerplate: Boilerplate, count: int
) -> list[Pair]:
    """Return the first `count` pairs with their similarity; `found` maps rows of `table` to rows of `others`."""
    pairs = []
    for position in np.flatnonzero(found >= 0)[:count]:
        similarity = _similarity(
            _shingles(table.view, position, boilerplate), _shingles(others.view, found[position], boilerplate)
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
    table: TokenTable,
    boilerplate: Boilerplate,
    bands: int,
    length: int,
    file: int,
    on_rows: Callable[[int], None],
) -> NDArray[np.int32]:
    """Write the keys of all bands, one band after the other; return the number of shingles of each row."""
    sizes = np.empty(table.rows, np.int32)
    for start, end in table.parts():
        keys = np.empty((bands, end - start), np.uint32)
        _sketch_rows(table.view, start, end, boilerplate, length, keys, sizes[start:end])
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
            raise OSError("the file of band keys must be complete, found it truncated")
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
    """Return the bytes of memory that reading a row may map."""
    examples = view.first[row + 1] - view.first[row]
    return int(8 * _row_tokens(view, row) + _EXAMPLE_BYTES * examples)


@numba.njit(nogil=True, cache=True)
def _hash_shingles(content: NDArray[np.int32], size: int, out: NDArray[np.uint64]) -> int:
    """Hash every run of 3 ids; a shorter content is one shingle. Return the number of hashes."""
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
def _shingles(view: TableView, row: int, boilerplate: Boilerplate) -> NDArray[np.uint64]:
    """Return the sorted distinct shingle hashes of a row."""
    content = np.empty(2 * _row_tokens(view, row), np.int32)
    hashes = np.empty(content.size, np.uint64)
    count = _hash_shingles(content, row_content(view, row, boilerplate, content), hashes)
    hashes = np.sort(hashes[:count])
    distinct = 0
    for place in range(count):
        if place == 0 or hashes[place] != hashes[place - 1]:
            hashes[distinct] = hashes[place]
            distinct += 1
    return hashes[:distinct].copy()


@numba.njit(nogil=True, cache=True)
def _similarity(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> float:
    """Return the Jaccard index of two sorted sets; 0 if one is empty."""
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
    boilerplate: Boilerplate,
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
        count = _hash_shingles(content, row_content(view, row, boilerplate, content), hashes)
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
    boilerplate: Boilerplate,
    threshold: float,
    keys: NDArray[np.uint32],
    order: NDArray[np.int64],
    start: int,
    sizes: NDArray[np.int32],
    duplicate_of: NDArray[np.int64],
    misses: NDArray[np.uint8],
) -> int:
    """Look for similar earlier rows among rows with equal keys, from the group at position `start` on.

    Return the start of the next group after about 128 MiB of the file.
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
            if duplicate_of[row] >= 0 or sizes[row] == 0 or misses[row] >= _MAXIMUM_MISSES:
                continue
            mine = _shingles(view, row, boilerplate)
            touched += _row_bytes(view, row)
            for other in range(count):
                if _similarity(mine, sets[other]) >= threshold:
                    duplicate_of[row] = rows[other]
                    break
                misses[row] += 1
            if duplicate_of[row] < 0 and count < _REPRESENTATIVES:
                sets[count] = mine
                rows[count] = row
                count += 1
        start = end
    return start


@numba.njit(nogil=True, cache=True)
def _mark_leaks(
    views: tuple[TableView, TableView],
    boilerplate: Boilerplate,
    threshold: float,
    keys: NDArray[np.uint32],
    order: NDArray[np.int64],
    start: int,
    wanted: NDArray[np.uint32],
    leaked_from: NDArray[np.int64],
    misses: NDArray[np.uint8],
) -> int:
    """Look for training rows that are similar to validation rows from `start` on; return the next row, as above."""
    touched = 0
    while start < wanted.size and touched < _TOUCHED_BYTES:
        row = start
        start += 1
        if leaked_from[row] >= 0 or misses[row] >= 2 * _MAXIMUM_MISSES:
            continue
        place = np.searchsorted(keys, wanted[row])
        if place == keys.size or keys[place] != wanted[row]:
            continue
        mine = _shingles(views[1], row, boilerplate)
        tried = 0
        while mine.size and place < keys.size and keys[place] == wanted[row] and tried < 2 * _REPRESENTATIVES:
            other = _shingles(views[0], order[place], boilerplate)
            touched += _row_bytes(views[0], order[place])
            if _similarity(mine, other) >= threshold:
                leaked_from[row] = order[place]
                break
            misses[row] += 1
            tried += 1
            place += 1
    return start
