"""The ways to run a step that a trace tries: all those among which the operator may choose, and a few shorter lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import Training, Weights

TOKENS_OF_A_PASS = 8192
"""Most tokens of a pass with several rows (the operator's `sizing/ladder.py`)."""
MOST_SIZES = 8
"""Most micro-batches. Between two of them, the memory is at most that of a straight line."""
_SHARES = (2, 4, 8)
_SHORTEST = 16


@dataclass(frozen=True)
class Way:
    """One way to run a step: rows of a pass, tokens of each, and whether later passes add to its gradients."""

    rows: int
    length: int
    accumulates: bool
    checkpointing: bool
    weights: Weights


def ways(training: Training, length: int) -> tuple[Way, ...]:
    """Return the ways to run a step with rows of `length` tokens: first those of the run itself, then the most frugal."""
    sizes = _micro_batches(training, length)
    forms: tuple[tuple[bool, Weights], ...] = (
        (True, "Quantized"),
        (False, "Quantized"),
        (True, "Dequantized"),
        (False, "Dequantized"),
    )
    batch = training.effective_batch_size
    own = training.micro_batch_size
    first = Way(own, length, own < batch, training.gradient_checkpointing, "Quantized")
    others = (
        Way(rows, length, rows < batch, checkpointing, weights)
        for checkpointing, weights in forms
        for rows in sizes
    )
    return tuple(dict.fromkeys((first, *others)))


def shorter(training: Training, length: int) -> tuple[Way, ...]:
    """Return the most frugal way with shorter rows, the longest first."""
    lengths = sorted({max(_SHORTEST, length // share) for share in _SHARES} - {length}, reverse=True)
    return tuple(
        Way(1, each, training.effective_batch_size > 1, checkpointing=True, weights="Quantized")
        for each in lengths
        if each < length
    )


def _micro_batches(training: Training, length: int) -> tuple[int, ...]:
    """Return the rows of a pass to try, the smallest first: divisors of the effective batch, and those of the run."""
    batch = training.effective_batch_size
    small = [size for size in range(1, isqrt(batch) + 1) if batch % size == 0]
    divisors = sorted({*small, *(batch // size for size in small)})
    fitting = [size for size in divisors if size * length <= TOKENS_OF_A_PASS] or [1]
    return tuple(sorted({1, training.micro_batch_size, *_thinned(fitting)}))


def _thinned(sizes: list[int]) -> Iterable[int]:
    """Return at most MOST_SIZES of the sizes, the smallest and the largest among them."""
    if len(sizes) <= MOST_SIZES:
        return sizes
    last = len(sizes) - 1
    return {sizes[round(step * last / (MOST_SIZES - 1))] for step in range(MOST_SIZES)}
