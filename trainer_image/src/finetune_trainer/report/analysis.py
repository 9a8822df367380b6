"""Analyzes two finished tables: statistics, warnings, and a few rows that show a person what is learned.

Everything is computed from token ids, batch by batch. Only samples and excerpts become text. Equal tables and settings
give equal results on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_trainer.contract.bounds import shorten
from finetune_trainer.contract.result import (
    CoverageResult,
    LanguageShare,
    StatisticsResult,
    WarningResult,
)
from finetune_trainer.contract.run_spec import Thresholds
from finetune_trainer.data.rows.excerpts import excerpt, middle_cut
from finetune_trainer.report.content import learn_boilerplate
from finetune_trainer.report.coverage import TargetIndex
from finetune_trainer.report.languages import language_mix
from finetune_trainer.report.near_duplicates import exact_pairs, find_near_copies
from finetune_trainer.report.prompts import Frame, TextReader, row_hashes, supervised_counts
from finetune_trainer.report.statistics import (
    Answers,
    Capacity,
    Coverage,
    FrequentAnswer,
    Histogram,
    NearCopies,
    NearPair,
    Prompts,
    RowCounts,
    Statistics,
    UncoveredPrompt,
)
from finetune_trainer.report.table import ROWS_BETWEEN_RELEASES, TokenTable
from finetune_trainer.report.targets import read_target_prompts
from finetune_trainer.report.text_features import mean_nearest_similarity, words_and_pairs
from finetune_trainer.report.warnings import DatasetWarning, dataset_warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune_trainer.data.dataset.counts import DatasetReport
    from finetune_trainer.report.content import Boilerplate

SAMPLED_ROWS = 2000
LANGUAGE_ROWS = 1000
_NAMED = 20
_PAIRS_NAMED = 10
_PROOF_ROWS = 3
_EXCERPT = 200
_PROOF_CHARACTERS = 1200
_LANGUAGES_NAMED = 3
_WARNINGS_NAMED = 8
_MESSAGE_CHARACTERS = 200


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings and facts for an analysis.

    `reports` are the counts of the training source and of a separate validation source, if there is one.
    `special_ids` are the tokenizer's control tokens. `frame` is the template's text around a user's text (see
    `user_frame`). `trainable_parameters` is the adapter's size, None if the model is not known. `model_warnings` come
    before those about the rows. `redact` removes secrets from every quoted text of a row.
    """

    reports: tuple[DatasetReport, ...]
    special_ids: Collection[int]
    thresholds: Thresholds = field(default_factory=Thresholds)
    frame: Frame = field(default_factory=Frame)
    seed: int = 0
    trainable_parameters: int | None = None
    reasoning_is_plain_text: bool = False
    target_prompts: Path | None = None
    model_warnings: tuple[DatasetWarning, ...] = ()
    redact: Callable[[str], str] = str


@dataclass(frozen=True)
class ProofRow:
    """One example as text: pairs of (learned, text) in order."""

    row: int
    runs: tuple[tuple[bool, str], ...]


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis. `proof` holds the first training rows."""

    statistics: Statistics
    warnings: tuple[DatasetWarning, ...]
    proof: tuple[ProofRow, ...]

    def summary(self) -> StatisticsResult:
        """Return a summary for a termination message, with at most 8 warnings and without unknown values.

        It has about 300 bytes, and up to 300 more for each warning.
        """
        statistics = self.statistics
        coverage, capacity = statistics.coverage, statistics.capacity
        known: dict[str, Any] = {}
        if statistics.prompts.variety is not None:
            known["prompt_variety"] = statistics.prompts.variety
        if capacity is not None:
            known["capacity_ratio"] = float(f"{capacity.ratio:.4g}")
        if coverage is not None:
            known["coverage"] = CoverageResult(targets=coverage.targets, covered=coverage.covered)
        return StatisticsResult(
            near_duplicates=statistics.near_duplicates.rows,
            leaked=statistics.leaked.rows,
            languages=tuple(
                LanguageShare(code=item.code, fraction=round(item.fraction, 4))
                for item in statistics.languages.languages[:_LANGUAGES_NAMED]
            ),
            reasoning_fraction=round(statistics.reasoning_fraction, 4),
            shortened=statistics.rows.shortened,
            warnings=tuple(_head_of(warning) for warning in self.warnings[:_WARNINGS_NAMED]),
            **known,
        )


def _head_of(warning: DatasetWarning) -> WarningResult:
    document = warning.document()
    return WarningResult.model_validate(
        {**document, "message": shorten(warning.message, _MESSAGE_CHARACTERS)}
    )


def analyze(
    training: Path,
    validation: Path,
    decode: Callable[[list[int]], str],
    settings: AnalysisSettings,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Analysis:
    """Analyze two finished tables.

    `decode` gives the text of token ids. `on_progress(done, total)` receives the number of processed rows. Temporary
    files lie next to the training table during the call. The training table must have an example. Raises
    StageError(InvalidDataset) for target prompts that cannot be read, OSError if the disk is full.
    """
    # Read first, so that a bad file does not cost the minutes of a large table.
    targets = None if settings.target_prompts is None else read_target_prompts(settings.target_prompts)
    tables = _Tables(TokenTable(training), TokenTable(validation), decode, settings)
    total = tables.training.rows * (2 if targets is None else 3)
    tables.count(lambda rows: on_progress(rows, total))
    limit = settings.thresholds.near_duplicate_similarity
    near = find_near_copies(
        tables.training, tables.validation, tables.boilerplate, limit, training.parent,
        lambda rows: on_progress(tables.training.rows + rows, total),
    )  # fmt: skip
    coverage = None
    if targets is not None:
        coverage = tables.coverage(targets, lambda rows: on_progress(2 * tables.training.rows + rows, total))
    statistics = Statistics(
        rows=RowCounts.of(settings.reports),
        training_rows=tables.training.rows,
        validation_rows=tables.validation.rows,
        training_examples=tables.training.examples,
        validation_examples=tables.validation.examples,
        lengths=Histogram.of(tables.training.view.lengths),
        supervised=Histogram.of(tables.supervised),
        near_duplicates=NearCopies(
            near.near_duplicates, tables.training.rows, limit,
            tables.near_pairs(tables.training, near.duplicate_of),
        ),
        leaked=NearCopies(
            near.leaked, tables.validation.rows, limit, tables.near_pairs(tables.validation, near.leaked_from)
        ),
        answers=tables.answers(),
        prompts=tables.prompts(),
        languages=language_mix(tables.sampled_texts[:LANGUAGE_ROWS]),
        reasoning_is_plain_text=settings.reasoning_is_plain_text,
        capacity=tables.capacity(),
        coverage=coverage,
    )  # fmt: skip
    tables.training.release()
    warnings = (*settings.model_warnings, *dataset_warnings(statistics, settings.thresholds))
    return Analysis(statistics, warnings, tuple(tables.proof()))


class _Tables:
    """Both tables, the text that their rows share, and the columns computed from them."""

    def __init__(
        self,
        training: TokenTable,
        validation: TokenTable,
        decode: Callable[[list[int]], str],
        settings: AnalysisSettings,
    ) -> None:
        self.training = training
        self.validation = validation
        self._settings = settings
        random = np.random.default_rng(settings.seed)
        # In random order, so that the first part of the sample is a sample too.
        sample = random.permutation(training.rows)[:SAMPLED_ROWS]
        special = frozenset(settings.special_ids)
        self.boilerplate: Boilerplate = learn_boilerplate(
            [training, validation], np.sort(sample), decode, special
        )
        self._decode = decode
        self._reader = self._reader_of(training)
        self.sampled_texts = []
        for number, row in enumerate(sample.tolist()):
            if number % ROWS_BETWEEN_RELEASES == 0:
                training.release()
            self.sampled_texts.append(self._reader.row(row))
        self.training.release()
        self.supervised: NDArray[np.int32] = np.empty(training.examples, np.int32)
        self._answer_hashes: NDArray[np.uint64] = np.empty(training.rows, np.uint64)
        self._prompt_hashes: NDArray[np.uint64] = np.empty(training.rows, np.uint64)

    def count(self, on_rows: Callable[[int], None]) -> None:
        """Compute the columns of the training rows."""
        view = self.training.view
        for start, end in self.training.parts():
            self.supervised[view.first[start] : view.first[end]] = supervised_counts(view, start, end)
            hashes = row_hashes(view, start, end, self.boilerplate)
            self._answer_hashes[start:end] = hashes[:, 0]
            self._prompt_hashes[start:end] = hashes[:, 1]
            self.training.release()
            on_rows(end)

    def near_pairs(self, table: TokenTable, found: NDArray[np.int64]) -> tuple[NearPair, ...]:
        """Return the first pairs of `found`, which maps rows of `table` to training rows (-1: none)."""
        reader = self._reader_of(table)
        positions = np.flatnonzero(found >= 0)[:_PAIRS_NAMED]
        pairs = exact_pairs(table, self.training, found, self.boilerplate, _PAIRS_NAMED)
        return tuple(
            NearPair(pair.row, pair.other, pair.similarity, self._excerpt(reader.row(int(position)).prompt))
            for position, pair in zip(positions, pairs, strict=True)
        )

    def answers(self) -> Answers:
        """Count repeated answers."""
        values, first, counts = np.unique(self._answer_hashes, return_index=True, return_counts=True)
        repeated = counts > 1
        order = np.lexsort((first[repeated], -counts[repeated]))[:_PAIRS_NAMED]
        frequent = tuple(
            FrequentAnswer(
                int(counts[repeated][place]),
                self._excerpt(self._reader.row(int(first[repeated][place])).answer),
            )
            for place in order
        )
        return Answers(self.training.rows, values.size, int(counts[repeated].sum()), frequent)

    def prompts(self) -> Prompts:
        """Measure how much the opening prompts differ."""
        sets = [words_and_pairs(texts.prompt) for texts in self.sampled_texts]
        variety = round(1 - mean_nearest_similarity(sets), 4) if len(sets) > 1 else None
        return Prompts(self.training.rows, int(np.unique(self._prompt_hashes).size), len(sets), variety)

    def capacity(self) -> Capacity | None:
        """Compare the information in the answers with the capacity of the adapter."""
        parameters = self._settings.trainable_parameters
        return None if parameters is None else Capacity(int(self.supervised.sum()), parameters)

    def coverage(self, targets: list[str], on_rows: Callable[[int], None]) -> Coverage:
        """Compare every prompt of the training rows with the target prompts."""
        index = TargetIndex(targets, [texts.prompt for texts in self.sampled_texts])
        for start, end in self.training.parts():
            for row, texts in self._reader.prompts(start, end):
                for text in texts:
                    index.add(row, text)
            self.training.release()
            on_rows(end)
        similarity = self._settings.thresholds.target_similarity
        missed = [item for item in index.nearest() if item.nearest < similarity]
        uncovered = tuple(
            UncoveredPrompt(self._excerpt(item.text), round(item.nearest, 4), item.row)
            for item in missed[:_NAMED]
        )
        return Coverage(len(targets), len(targets) - len(missed), similarity, uncovered)

    def proof(self) -> list[ProofRow]:
        """Return the first example of each of the first training rows, split into learned and other text."""
        rows = []
        for position in range(min(_PROOF_ROWS, self.training.rows)):
            example = int(self.training.view.first[position])
            runs = tuple(
                (learned, middle_cut(self._settings.redact(self._decode(ids)), _PROOF_CHARACTERS))
                for learned, ids in self._reader.runs(example)
            )
            rows.append(ProofRow(int(self.training.row_numbers[position]), runs))
        return rows

    def _reader_of(self, table: TokenTable) -> TextReader:
        settings = self._settings
        return TextReader(table, self.boilerplate, self._decode, settings.special_ids, settings.frame)

    def _excerpt(self, text: str) -> str:
        return excerpt(self._settings.redact(text), _EXCERPT)
