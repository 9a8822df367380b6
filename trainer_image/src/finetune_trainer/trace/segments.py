"""Composes the peaks of a deep model from the parts of a pass through a few of its layers. Sizes are bytes.

A pass is a sequence of segments: what comes before the layers, each layer, the head, and the same backward. A segment
raises the memory to a peak and leaves it higher or lower than before. Layers of one kind have equal segments, so the
memory of every layer follows from its own segment and from what the earlier ones have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A part of a pass: its peak above the memory at its begin, and what it leaves."""

    peak: int
    left: int


@dataclass(frozen=True)
class PassSegments:
    """A pass through the traced layers, in the order of time; both lists of layers begin with the first layer.

    A pass without a backward part has no `loss_end`, `backward` and `end`.
    """

    before: Segment
    forward: tuple[Segment, ...]
    head: Segment
    loss_end: Segment | None = None
    backward: tuple[Segment, ...] = ()
    end: Segment | None = None


@dataclass(frozen=True)
class PassPeaks:
    """Peaks of a pass above the memory at its begin: until the loss is known, and after that."""

    forward: int
    backward: int


def compose(traced: PassSegments, layers: Sequence[int]) -> PassPeaks:
    """Return the peaks of a model whose layer i has the segments of the traced layer `layers[i]`."""
    ahead = [traced.before, *(traced.forward[index] for index in layers), traced.head]
    forward, held = _peak(ahead, 0)
    if traced.loss_end is None or traced.end is None:
        return PassPeaks(forward, held)
    back = [traced.loss_end, *(traced.backward[index] for index in reversed(layers)), traced.end]
    return PassPeaks(forward, _peak(back, held)[0])


def _peak(segments: Iterable[Segment], held: int) -> tuple[int, int]:
    """Return the largest memory during the segments, and the memory after them."""
    largest = held
    for segment in segments:
        largest = max(largest, held + segment.peak)
        held += segment.left
    return largest, held


def total(outside: int, traced: Sequence[int], layers: Sequence[int]) -> int:
    """Return the size of a model: `outside` of its layers, and that of each layer's stand-in."""
    return outside + sum(traced[index] for index in layers)
