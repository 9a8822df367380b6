"""Warnings of the report: one policy for each code, from statistics to a message.

docs/dataset-report.md describes every code; a test keeps the two lists equal.
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
    """A finding that a person should check, with the value, its threshold and a message with the remedy."""

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
    """Return the warnings for these statistics, the most harmful first."""
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
        f"the training set has {rows:,} {'row' if rows == 1 else 'rows'}, so the model may memorize them; add rows",
    )  # fmt: skip


def _validation_leakage(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    leaked = statistics.leaked
    return _above(
        "ValidationLeakage", leaked.fraction, thresholds.leaked_fraction,
        f"{leaked.rows:,} of {leaked.of:,} validation rows ({percent(leaked.fraction)}) have a near-duplicate in the training "
        "set, so the evaluation is optimistic; remove them, or use a separate validation source",
    )  # fmt: skip


def _reasoning_as_text(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    fraction = statistics.reasoning_fraction if statistics.reasoning_is_plain_text else 0.0
    return _above(
        "ReasoningAsText", fraction, thresholds.reasoning_as_text_fraction,
        f"{rows.with_reasoning:,} of {rows.kept:,} rows ({percent(fraction)}) have a reasoning trace, and this chat template "
        "writes it as ordinary text; set dataset.reasoning to Strip, or use a reasoning model",
    )  # fmt: skip


def _mixed_reasoning(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    fraction = statistics.reasoning_fraction
    return _above(
        "MixedReasoning", min(fraction, 1 - fraction), thresholds.mixed_reasoning_fraction,
        f"{percent(fraction)} of the rows have a reasoning trace and the others have none, so the model learns to reason "
        "at random; set dataset.reasoning to Strip, or add a trace to every row",
    )  # fmt: skip


def _empty_answers(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    return _above(
        "EmptyAnswers", rows.empty_answers / max(1, rows.kept), thresholds.empty_answer_fraction,
        f"{rows.empty_answers:,} of {rows.kept:,} rows have an empty answer, so the model learns to say nothing; "
        "complete or remove them, unless you want empty answers",
    )  # fmt: skip


def _escaped_control_tokens(statistics: Statistics, _: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    return _above(
        "EscapedControlTokens", rows.escaped / max(1, rows.kept), 0.0,
        f"{rows.escaped:,} of {rows.kept:,} rows mention control tokens as plain text; "
        "the server must also tokenize content without control tokens",
    )  # fmt: skip


def _rows_refused(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    fraction = share(rows.refused, rows.read)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in list(rows.refused_by_reason.items())[:3])
    return _above(
        "RowsRefused", fraction, thresholds.refused_fraction,
        f"{rows.refused:,} of {rows.read:,} rows ({percent(fraction)}) were rejected: {reasons}; "
        "correct these rows (the report shows examples of each reason)",
    )  # fmt: skip


def _near_duplicate_rows(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    near = statistics.near_duplicates
    return _above(
        "NearDuplicateRows", near.fraction, thresholds.near_duplicate_fraction,
        f"{near.rows:,} of {near.of:,} training rows ({percent(near.fraction)}) are near-duplicates of an earlier row, so "
        "their content gets extra weight; remove them, or replace them with different rows",
    )  # fmt: skip


def _duplicate_rows(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    copies = rows.duplicates + rows.held_out_copies
    fraction = share(copies, rows.read)
    return _above(
        "DuplicateRows", fraction, thresholds.duplicate_fraction,
        f"{copies:,} of {rows.read:,} rows ({percent(fraction)}) exactly repeat another row, and PREPARE left them out; "
        "check the process that makes the file",
    )  # fmt: skip


def _repeated_answers(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    answers = statistics.answers
    most = answers.most_frequent[0].count if answers.most_frequent else 0
    return _above(
        "RepeatedAnswers", answers.fraction, thresholds.repeated_answer_fraction,
        f"{answers.repeated:,} of {answers.rows:,} training rows ({percent(answers.fraction)}) have the same answer as "
        f"another row. The most frequent answer occurs {most:,} times; balance the answers, unless the task has few "
        "possible answers",
    )  # fmt: skip


def _low_prompt_variety(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    variety = statistics.prompts.variety
    if variety is None:
        return None
    return _below(
        "LowPromptVariety", variety, thresholds.minimum_prompt_variety,
        f"the prompts are alike: variety {variety:.2f} on a scale from 0 to 1; add more varied prompts, like those in "
        "production",
    )  # fmt: skip


def _targets_uncovered(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    coverage = statistics.coverage
    if coverage is None:
        return None
    return _below(
        "TargetPromptsUncovered", coverage.fraction, thresholds.minimum_coverage,
        f"{coverage.targets - coverage.covered:,} of {coverage.targets:,} target prompts have no similar training prompt; "
        "add rows for the prompts that the report lists",
    )  # fmt: skip


def _mixed_languages(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    mix = statistics.languages
    # A fraction of a few rows means nothing.
    if mix.main_fraction is None or mix.determined < _LEAST_DETERMINED:
        return None
    named = ", ".join(f"{percent(item.fraction)} {item.code}" for item in mix.languages[:3])
    return _below(
        "MixedLanguages", mix.main_fraction, thresholds.minimum_language_fraction,
        f"{mix.determined:,} sampled rows are in several languages ({named}); check that you want this, and that each "
        "answer is in the language of its prompt",
    )  # fmt: skip


def _shortened_rows(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    rows = statistics.rows
    fraction = share(rows.shortened, rows.kept)
    return _above(
        "ShortenedRows", fraction, thresholds.shortened_fraction,
        f"{rows.shortened:,} of {rows.kept:,} rows ({percent(fraction)}) lost their earliest turns because they exceed "
        "training.maximumLength; raise it if the answers need these turns",
    )  # fmt: skip


def _lora_capacity(statistics: Statistics, thresholds: Thresholds) -> DatasetWarning | None:
    capacity = statistics.capacity
    if capacity is None:
        return None
    return _above(
        "LoraCapacity", capacity.ratio, thresholds.maximum_capacity_ratio,
        f"the answers hold about {capacity.ratio:.1f} times the information that {capacity.trainable_parameters:,} adapter "
        "parameters can store; raise training.lora.rank, or set training.lora.targetModules to AllLinear",
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
    "EscapedControlTokens": _escaped_control_tokens,
    "RepeatedAnswers": _repeated_answers,
    "MixedLanguages": _mixed_languages,
    "ShortenedRows": _shortened_rows,
    "LoraCapacity": _lora_capacity,
}
