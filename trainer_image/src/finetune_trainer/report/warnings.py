"""When the report warns: one policy for each warning, from numbers to a code and a sentence.

docs/dataset-report.md describes every code; a test holds the two lists equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.excerpts import percent
from finetune_trainer.report.statistics import share

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.contract.run_spec import Thresholds
    from finetune_trainer.report.statistics import Statistics

_LEAST_DETERMINED = 20


@dataclass(frozen=True)
class DatasetWarning:
    """Something that a person should look at: what was found and what to do, with the number and its limit."""

    code: str
    value: float
    threshold: float
    message: str

    def document(self) -> dict[str, Any]:
        """Return the warning as JSON, its value rounded to six digits."""
        return {
            "code": self.code,
            "value": float(f"{self.value:.6g}"),
            "threshold": self.threshold,
            "message": self.message,
        }


def dataset_warnings(statistics: Statistics, thresholds: Thresholds) -> list[DatasetWarning]:
    """Return the warnings that the numbers give rise to, those that spoil a run most surely first."""
    found = (policy(statistics, thresholds) for policy in POLICIES.values())
    return [warning for warning in found if warning is not None]


def _above(code: str, value: float, threshold: float, message: str) -> DatasetWarning | None:
    return DatasetWarning(code, value, threshold, message) if value > threshold else None


def _below(code: str, value: float, threshold: float, message: str) -> DatasetWarning | None:
    return DatasetWarning(code, value, threshold, message) if value < threshold else None


def _few_rows(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.training_rows
    return _below(
        "FewRows", rows, thresholds.minimum_rows,
        f"{rows} rows are left to train on; add rows, or expect the model to learn them by heart",
    )  # fmt: skip


def _validation_leakage(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    leaked = statistics.leaked
    return _above(
        "ValidationLeakage", leaked.fraction, thresholds.leaked_fraction,
        f"{leaked.rows} of {leaked.of} validation rows ({percent(leaked.fraction)}) nearly stand in the training rows "
        "too, so that the verdict flatters; remove them, or validate on a source of its own",
    )  # fmt: skip


def _reasoning_as_text(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    fraction = statistics.reasoning_fraction if statistics.reasoning_is_plain_text else 0.0
    return _above(
        "ReasoningAsText", fraction, thresholds.reasoning_as_text_fraction,
        f"{statistics.rows.with_reasoning} rows ({percent(fraction)}) have a reasoning trace that this template shows as "
        "ordinary text; set dataset.reasoning to Strip, or use a reasoning model",
    )  # fmt: skip


def _mixed_reasoning(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    fraction = statistics.reasoning_fraction
    return _above(
        "MixedReasoning", min(fraction, 1 - fraction), thresholds.mixed_reasoning_fraction,
        f"{percent(fraction)} of the rows have a reasoning trace and the others have none, so that the model learns to "
        "think by chance; set dataset.reasoning to Strip, or give all rows a trace",
    )  # fmt: skip


def _empty_answers(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    return _above(
        "EmptyAnswers", rows.empty_answers / max(1, rows.kept), thresholds.empty_answer_fraction,
        f"{rows.empty_answers:,} of {rows.kept:,} rows have an answer without text, so that the model learns to end its turn "
        "at once; fill in or drop these answers unless silence is wanted",
    )  # fmt: skip


def _rows_refused(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    fraction = share(rows.refused, rows.read)
    reasons = ", ".join(f"{count} {reason}" for reason, count in list(rows.refused_by_reason.items())[:3])
    return _above(
        "RowsRefused", fraction, thresholds.refused_fraction,
        f"{rows.refused} of {rows.read} rows ({percent(fraction)}) were refused: {reasons}; "
        "correct them by the examples in the report",
    )  # fmt: skip


def _near_duplicate_rows(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    near = statistics.near_duplicates
    return _above(
        "NearDuplicateRows", near.fraction, thresholds.near_duplicate_fraction,
        f"{near.rows} of {near.of} training rows ({percent(near.fraction)}) nearly repeat an earlier one and count as "
        "often; leave them out, or replace them by different rows",
    )  # fmt: skip


def _duplicate_rows(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    copies = rows.duplicates + rows.held_out_copies
    fraction = share(copies, rows.read)
    return _above(
        "DuplicateRows", fraction, thresholds.duplicate_fraction,
        f"{copies} of {rows.read} rows ({percent(fraction)}) repeat another row and were left out; "
        "look at how the file is made, fewer rows are trained than it seems to hold",
    )  # fmt: skip


def _repeated_answers(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    answers = statistics.answers
    most = answers.most_frequent[0].count if answers.most_frequent else 0
    return _above(
        "RepeatedAnswers", answers.fraction, thresholds.repeated_answer_fraction,
        f"{answers.repeated} of {answers.rows} training rows ({percent(answers.fraction)}) share their answer with another, "
        f"the commonest {most} times; balance them, unless the task has few answers",
    )  # fmt: skip


def _low_prompt_variety(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    variety = statistics.prompts.variety
    if variety is None:
        return None
    return _below(
        "LowPromptVariety", variety, thresholds.minimum_prompt_variety,
        f"prompts share {percent(1 - variety)} of their words with the nearest other one (variety {variety:.2f}); "
        "add prompts in other words, as production will send them",
    )  # fmt: skip


def _targets_uncovered(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    coverage = statistics.coverage
    if coverage is None:
        return None
    return _below(
        "TargetPromptsUncovered", coverage.fraction, thresholds.minimum_coverage,
        f"{coverage.targets - coverage.covered} of {coverage.targets} target prompts have no training prompt like them; "
        "add rows for those that the report lists",
    )  # fmt: skip


def _mixed_languages(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    mix = statistics.languages
    # A share of a handful says nothing.
    if mix.main_fraction is None or mix.determined < _LEAST_DETERMINED:
        return None
    named = ", ".join(f"{percent(item.fraction)} {item.code}" for item in mix.languages[:3])
    return _below(
        "MixedLanguages", mix.main_fraction, thresholds.minimum_language_fraction,
        f"rows are in several languages ({named} of {mix.determined} sampled); check that this is meant, "
        "and that prompts and answers of a row agree",
    )  # fmt: skip


def _shortened_rows(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    fraction = share(rows.shortened, rows.kept)
    return _above(
        "ShortenedRows", fraction, thresholds.shortened_fraction,
        f"{rows.shortened} of {rows.kept} rows ({percent(fraction)}) lost earlier turns to training.maximumLength; "
        "raise it if the answers need them",
    )  # fmt: skip


def _lora_capacity(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    capacity = statistics.capacity
    if capacity is None:
        return None
    return _above(
        "LoraCapacity", capacity.ratio, thresholds.maximum_capacity_ratio,
        f"answers hold about {capacity.ratio:.1f} times what {capacity.trainable_parameters} adapter parameters can "
        "store; raise training.lora.rank, or adapt all linear layers",
    )  # fmt: skip


POLICIES: dict[str, Callable[[Statistics, Thresholds], DatasetWarning | None]] = {
    "FewRows": _few_rows,
    "ValidationLeakage": _validation_leakage,
    "ReasoningAsText": _reasoning_as_text,
    "MixedReasoning": _mixed_reasoning,
    "RowsRefused": _rows_refused,
    "TargetPromptsUncovered": _targets_uncovered,
    "LowPromptVariety": _low_prompt_variety,
    "NearDuplicateRows": _near_duplicate_rows,
    "DuplicateRows": _duplicate_rows,
    "EmptyAnswers": _empty_answers,
    "RepeatedAnswers": _repeated_answers,
    "MixedLanguages": _mixed_languages,
    "ShortenedRows": _shortened_rows,
    "LoraCapacity": _lora_capacity,
}
