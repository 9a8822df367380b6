"""Statistics of the dataset report. analysis.py computes them, warnings.py checks them, page.py shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from finetune_trainer.data.dataset.counts import DatasetReport

_BINS = 24
BITS_PER_TOKEN = 1.0
"""Information in an average supervised token, see `Capacity`."""
BITS_PER_PARAMETER = 2.0
"""Information that a trained parameter can store, see `Capacity`."""


def share(part: float, whole: float) -> float:
    """Return `part / whole`, and 0 if the whole is 0."""
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class RowCounts:
    """Row counts over all sources.

    `duplicates` and `held_out_copies` are exact duplicates that were left out. `refused` counts rejected rows: the names
    of these fields are members of the JSON report, whose format does not change.
    """

    read: int
    refused: int
    duplicates: int
    held_out_copies: int
    kept: int
    with_reasoning: int
    empty_answers: int
    shortened: int
    refused_by_reason: dict[str, int]
    escaped: int = 0

    @classmethod
    def of(cls, reports: Iterable[DatasetReport]) -> RowCounts:
        """Add up the counts of the training source and of a separate validation source, if there is one."""
        everything = list(reports)
        by_reason: dict[str, int] = {}
        for report in everything:
            for reason, count in report.rejected.items():
                by_reason[reason.value] = by_reason.get(reason.value, 0) + count
        return cls(
            read=sum(report.rows for report in everything),
            refused=sum(report.rejected_rows for report in everything),
            duplicates=sum(report.duplicates for report in everything),
            held_out_copies=sum(report.held_out_copies for report in everything),
            kept=sum(report.kept for report in everything),
            with_reasoning=sum(report.with_reasoning for report in everything),
            empty_answers=sum(report.empty_answers for report in everything),
            escaped=sum(report.escaped for report in everything),
            shortened=sum(report.shortened for report in everything),
            refused_by_reason=dict(sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))),
        )


@dataclass(frozen=True)
class Histogram:
    """Counts of integers: bin `i` holds the values from `edges[i]` up to, but without, `edges[i + 1]`.

    All bins have the same width, except for the last one if a few values are very large.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    total: int
    mean: float
    median: int
    p90: int
    p99: int
    minimum: int
    maximum: int

    @classmethod
    def of(cls, values: NDArray[Any]) -> Histogram:
        """Count `values`, which must not be empty."""
        ordered = np.sort(values.astype(np.int64))
        low, high = int(ordered[0]), int(ordered[-1])
        # The nearest-rank percentile is a value that occurs.
        median, p90, p99 = (int(ordered[-(-ordered.size * part // 100) - 1]) for part in (50, 90, 99))
        shown = high if high - low <= 2 * (p99 - low) else p99
        width = _nice_width((shown - low + 1) / _BINS)
        start = low // width * width
        edges = np.arange(start, shown + width + 1, width)
        edges = edges[: int(np.searchsorted(edges, shown, side="right")) + 1]
        edges[-1] = max(int(edges[-1]), high + 1)
        counts = np.diff(np.searchsorted(ordered, edges, side="left"))
        return cls(
            edges=tuple(int(edge) for edge in edges),
            counts=tuple(int(count) for count in counts),
            total=int(ordered.sum()),
            mean=round(float(ordered.mean()), 2),
            median=median,
            p90=p90,
            p99=p99,
            minimum=low,
            maximum=high,
        )


def _nice_width(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= least:
                return step * scale
        scale *= 10


@dataclass(frozen=True)
class NearPair:
    """Two near-duplicate rows: their numbers, their Jaccard similarity and the beginning of the first row's text."""

    row: int
    other: int
    similarity: float
    text: str


@dataclass(frozen=True)
class NearCopies:
    """`rows` of `of` rows have another row with at least `similarity`; `examples` are the first of them."""

    rows: int
    of: int
    similarity: float
    examples: tuple[NearPair, ...]

    @property
    def fraction(self) -> float:
        """Fraction of the rows."""
        return share(self.rows, self.of)


@dataclass(frozen=True)
class FrequentAnswer:
    """An answer that several rows share."""

    count: int
    text: str


@dataclass(frozen=True)
class Answers:
    """`repeated` of `rows` training rows have exactly the same learned tokens as another one."""

    rows: int
    distinct: int
    repeated: int
    most_frequent: tuple[FrequentAnswer, ...]

    @property
    def fraction(self) -> float:
        """Fraction of the training rows with the same answer as another row."""
        return share(self.repeated, self.rows)


@dataclass(frozen=True)
class Prompts:
    """The variety of the prompts.

    The `rows` opening prompts have `distinct` different token sequences. `variety` is 1 minus the mean similarity of the
    `sampled` prompts to their nearest neighbor among them. The similarity is the number of shared words and word pairs
    over the geometric mean of both prompts' counts. The variety is 0 for one prompt, repeated, and 1 for prompts without
    a common word. It is None below two rows.
    """

    rows: int
    distinct: int
    sampled: int
    variety: float | None


@dataclass(frozen=True)
class LanguageShare:
    """A language (ISO 639) and the number of sampled rows in it, also as a fraction of the determined rows."""

    code: str
    rows: int
    fraction: float


@dataclass(frozen=True)
class LanguageMix:
    """Languages of `sampled` rows, the most frequent first; `determined` rows have a recognized language."""

    sampled: int
    determined: int
    languages: tuple[LanguageShare, ...]

    @property
    def main_fraction(self) -> float | None:
        """Fraction of the most frequent language, None if no row has a recognized language."""
        return self.languages[0].fraction if self.languages else None


@dataclass(frozen=True)
class Capacity:
    """The information in the answers and the capacity of the adapter, both in bits.

    A trained network stores about 2 bits of knowledge a parameter (Allen-Zhu and Li 2024, "Physics of Language
    Models: Part 3.3, Knowledge Capacity Scaling Laws"). The loss summed over the first epoch bounds the bits needed to
    memorize a dataset. For language models it is about 1 bit (0.69 nats) a token (Schulman et al. 2025, "LoRA Without
    Regret", which compares the two numbers for LoRA). Both numbers are rough. The first was measured on synthetic facts
    seen a thousand times, the second depends on model and data. Learning a skill takes far less than memorizing its
    examples. The ratio is right only to an order of magnitude.
    """

    supervised_tokens: int
    trainable_parameters: int
    bits_per_token: float = BITS_PER_TOKEN
    bits_per_parameter: float = BITS_PER_PARAMETER

    @property
    def ratio(self) -> float:
        """Bits in the answers over bits that the adapter can store."""
        return share(
            self.supervised_tokens * self.bits_per_token, self.trainable_parameters * self.bits_per_parameter
        )


@dataclass(frozen=True)
class UncoveredPrompt:
    """A target prompt without a similar training prompt, with the similarity and row of the nearest one."""

    text: str
    nearest: float
    row: int | None


@dataclass(frozen=True)
class Coverage:
    """`covered` of `targets` target prompts have a training prompt with at least `similarity`."""

    targets: int
    covered: int
    similarity: float
    uncovered: tuple[UncoveredPrompt, ...]

    @property
    def fraction(self) -> float:
        """Fraction of the target prompts."""
        return share(self.covered, self.targets)


@dataclass(frozen=True)
class Statistics:
    """All statistics. Histograms count training examples by their number of tokens."""

    rows: RowCounts
    training_rows: int
    validation_rows: int
    training_examples: int
    validation_examples: int
    lengths: Histogram
    supervised: Histogram
    near_duplicates: NearCopies
    leaked: NearCopies
    answers: Answers
    prompts: Prompts
    languages: LanguageMix
    reasoning_is_plain_text: bool
    capacity: Capacity | None
    coverage: Coverage | None

    @property
    def reasoning_fraction(self) -> float:
        """Fraction of the kept rows with a reasoning trace in their answers."""
        return share(self.rows.with_reasoning, self.rows.kept)
