"""What the dataset report knows, as values; analysis.py fills them, warnings.py judges them, page.py shows them."""

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
"""Description length of an average supervised token, see `Capacity`."""
BITS_PER_PARAMETER = 2.0
"""What a trained parameter can hold, see `Capacity`."""


def share(part: float, whole: float) -> float:
    """`part / whole`, 0 of nothing."""
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class RowCounts:
    """Rows read from all sources. `duplicates` and `held_out_copies` are exact repetitions that were left out."""

    read: int
    refused: int
    duplicates: int
    held_out_copies: int
    kept: int
    with_reasoning: int
    empty_answers: int
    shortened: int
    refused_by_reason: dict[str, int]

    @classmethod
    def of(cls, reports: Iterable[DatasetReport]) -> RowCounts:
        """Add up the counts of the training and, where it has a source of its own, the validation rows."""
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
            shortened=sum(report.shortened for report in everything),
            refused_by_reason=dict(sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))),
        )


@dataclass(frozen=True)
class Histogram:
    """Counts of whole numbers: bin `i` holds `edges[i]` up to, but without, `edges[i + 1]`.

    Bins are equally wide, but for the last one where few values lie far out.
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
    """Two rows that are nearly the same: their numbers, Jaccard similarity and the beginning of the first one's text."""

    row: int
    other: int
    similarity: float
    text: str


@dataclass(frozen=True)
class NearCopies:
    """`rows` of `of` rows have a row that is similar to at least `similarity`; `examples` are the first of them."""

    rows: int
    of: int
    similarity: float
    examples: tuple[NearPair, ...]

    @property
    def fraction(self) -> float:
        """Share of the rows."""
        return share(self.rows, self.of)


@dataclass(frozen=True)
class FrequentAnswer:
    """An answer that several rows share."""

    count: int
    text: str


@dataclass(frozen=True)
class Answers:
    """`repeated` of `rows` training rows have exactly the learned tokens of another one."""

    rows: int
    distinct: int
    repeated: int
    most_frequent: tuple[FrequentAnswer, ...]

    @property
    def fraction(self) -> float:
        """Share of the training rows whose answer another row gives too."""
        return share(self.repeated, self.rows)


@dataclass(frozen=True)
class Prompts:
    """How much the prompts differ.

    `distinct` of `rows` opening prompts differ in a token. `variety` is 1 less the mean similarity of the `sampled`
    prompts to their nearest neighbour among them, where similarity is shared words and word pairs over the geometric
    mean of both numbers: 0 for one prompt repeated, 1 for prompts without a common word; None below two rows.
    """

    rows: int
    distinct: int
    sampled: int
    variety: float | None


@dataclass(frozen=True)
class LanguageShare:
    """A language (ISO 639) and the sampled rows in it; `fraction` is of the rows whose language is clear."""

    code: str
    rows: int
    fraction: float


@dataclass(frozen=True)
class LanguageMix:
    """Languages of `sampled` rows, most frequent first; `determined` rows have one that is clear."""

    sampled: int
    determined: int
    languages: tuple[LanguageShare, ...]

    @property
    def main_fraction(self) -> float | None:
        """Share of the most frequent language, None if no row's language is clear."""
        return self.languages[0].fraction if self.languages else None


@dataclass(frozen=True)
class Capacity:
    """What the answers hold against what the adapter can hold, both in bits.

    A trained network stores about 2 bits of knowledge a parameter (Allen-Zhu and Li 2024, "Physics of Language
    Models: Part 3.3, Knowledge Capacity Scaling Laws"). The loss summed over the first epoch bounds the bits that
    memorising a data set takes; for language models it is around 1 bit (0.69 nats) a token (Schulman et al. 2025,
    "LoRA Without Regret", where the two are compared for LoRA). Both numbers are rough: the first was measured on
    synthetic facts seen a thousand times, the second depends on model and data, and learning a skill takes far less
    than memorising its examples. The ratio tells orders of magnitude apart, no more.
    """

    supervised_tokens: int
    trainable_parameters: int
    bits_per_token: float = BITS_PER_TOKEN
    bits_per_parameter: float = BITS_PER_PARAMETER

    @property
    def ratio(self) -> float:
        """Bits in the answers over bits that the adapter can hold."""
        return share(
            self.supervised_tokens * self.bits_per_token, self.trainable_parameters * self.bits_per_parameter
        )


@dataclass(frozen=True)
class UncoveredPrompt:
    """A target prompt that no training prompt is like, and how near the nearest one comes."""

    text: str
    nearest: float
    row: int | None


@dataclass(frozen=True)
class Coverage:
    """`covered` of `targets` target prompts have a training prompt of at least `similarity`."""

    targets: int
    covered: int
    similarity: float
    uncovered: tuple[UncoveredPrompt, ...]

    @property
    def fraction(self) -> float:
        """Share of the target prompts."""
        return share(self.covered, self.targets)


@dataclass(frozen=True)
class Statistics:
    """Everything counted. Histograms are over training examples, in tokens."""

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
        """Share of the kept rows whose answers hold a reasoning trace."""
        return share(self.rows.with_reasoning, self.rows.kept)
