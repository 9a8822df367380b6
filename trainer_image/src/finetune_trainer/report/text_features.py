"""Features of texts in any language: sets of hashed words, word pairs and character trigrams.

A word is a run of letters and digits. In scripts without spaces (Han, Kana, Thai, Lao, Khmer, Myanmar) every character
is a word. Case and punctuation do not count.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numba
import numpy as np

from finetune_trainer.report.content import mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Longer texts are compared by their beginning.
MAXIMUM_CHARACTERS = 8192
_WORD, _ALONE = 1, 2
_PLANES = 0x33480
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3347F),
)  # fmt: skip
_PAIR = np.uint64(0x517CC1B727220A95)
_TRIGRAM = np.uint64(0x2545F4914F6CDD1D)


@cache
def character_classes() -> NDArray[np.uint8]:
    """Return the class of each code point: 0 separates words, 1 belongs to a word, 2 is a word itself."""
    classes = np.fromiter((chr(code).isalnum() for code in range(_PLANES)), np.uint8, _PLANES)
    # Combining marks belong to the letter before them, like vowel signs in the scripts of India.
    for first, last in ((0x0300, 0x036F), (0x0900, 0x0DFF)):
        classes[first : last + 1] = _WORD
    for first, last in _UNSPACED:
        classes[first : last + 1][classes[first : last + 1] == _WORD] = _ALONE
    return classes


def words_and_pairs(text: str) -> NDArray[np.uint64]:
    """Return the sorted distinct hashes of a text's words and pairs of neighboring words."""
    codes = code_points(text)
    out = np.empty(2 * codes.size, np.uint64)
    return _distinct(out[: emit_words(codes, character_classes(), True, out)])


def mean_nearest_similarity(sets: Sequence[NDArray[np.uint64]]) -> float:
    """Return the mean similarity of each set to its nearest other set.

    The similarity is the number of shared members over the geometric mean of both sizes: the cosine of the sets as
    binary vectors. Two empty sets have similarity 1. Needs at least two sets.
    """
    starts = np.concatenate(([0], np.cumsum([item.size for item in sets]))).astype(np.int64)
    members = np.concatenate([*sets, np.empty(0, np.uint64)])
    return float(_nearest(members, starts).mean())


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the code points of a text's beginning, case folded."""
    folded = text[:MAXIMUM_CHARACTERS].casefold()
    return np.frombuffer(folded.encode("utf-32-le", errors="replace"), np.uint32)


@numba.njit(nogil=True, cache=True)
def _class_of(code: np.uint32, classes: NDArray[np.uint8]) -> np.uint8:
    return classes[code] if code < classes.size else np.uint8(0)


@numba.njit(nogil=True, cache=True)
def _distinct(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    ordered = np.sort(hashes)
    count = 0
    for place in range(ordered.size):
        if place == 0 or ordered[place] != ordered[place - 1]:
            ordered[count] = ordered[place]
            count += 1
    return ordered[:count].copy()


@numba.njit(nogil=True, cache=True)
def emit_words(
    codes: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    pairs: bool,  # noqa: FBT001 -- compiled functions take no keyword-only arguments
    out: NDArray[np.uint64],
) -> int:
    """Write the hash of every word, and with `pairs` of every two neighbors, into `out` (twice the codes' size)."""
    count = 0
    before = np.uint64(0)
    position = 0
    while position < codes.size:
        kind = _class_of(codes[position], classes)
        if kind == 0:
            position += 1
            continue
        word = np.uint64(kind)
        if kind == _ALONE:
            word = mix(word ^ np.uint64(codes[position]))
            position += 1
        else:
            while position < codes.size and _class_of(codes[position], classes) == _WORD:
                word = mix(word ^ np.uint64(codes[position]))
                position += 1
        out[count] = word
        count += 1
        if pairs and before:
            out[count] = mix(before ^ _PAIR) ^ word
            count += 1
        before = word
    return count


@numba.njit(nogil=True, cache=True)
def emit_trigrams(codes: NDArray[np.uint32], classes: NDArray[np.uint8], out: NDArray[np.uint64]) -> int:
    """Write the hash of every character trigram within words into `out` (twice the codes' size)."""
    count = 0
    position = 0
    # A word's edges are marked. A character that is a word itself counts as one trigram.
    while position < codes.size:
        kind = _class_of(codes[position], classes)
        if kind != _WORD:
            if kind == _ALONE:
                out[count] = mix(np.uint64(codes[position]) ^ _TRIGRAM)
                count += 1
            position += 1
            continue
        # Code 0 marks both edges.
        first, second = np.uint64(0), np.uint64(0)
        while True:
            inside = position < codes.size and _class_of(codes[position], classes) == _WORD
            third = np.uint64(codes[position]) if inside else np.uint64(0)
            if second:
                out[count] = mix(mix(mix(first ^ _TRIGRAM) ^ second) ^ third)
                count += 1
            if not inside:
                break
            first, second = second, third
            position += 1
    return count


@numba.njit(nogil=True, cache=True)
def _nearest(members: NDArray[np.uint64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    count = starts.size - 1
    best = np.zeros(count, np.float64)
    for left in range(count):
        for right in range(left + 1, count):
            size = (starts[left + 1] - starts[left]) * (starts[right + 1] - starts[right])
            if size == 0:
                same = starts[left + 1] == starts[left] and starts[right + 1] == starts[right]
                similarity = 1.0 if same else 0.0
            else:
                i, j, shared = starts[left], starts[right], 0
                while i < starts[left + 1] and j < starts[right + 1]:
                    if members[i] == members[j]:
                        shared += 1
                        i += 1
                        j += 1
                    elif members[i] < members[j]:
                        i += 1
                    else:
                        j += 1
                similarity = shared / np.sqrt(size)
            best[left] = max(best[left], similarity)
            best[right] = max(best[right], similarity)
    return best
