"""The dataset report as one JSON document, and as a page made from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_trainer.data.dataset.counts import DatasetReport
    from finetune_trainer.report.analysis import Analysis

VERSION = 1
_DERIVED = ("fraction", "ratio", "reasoning_fraction", "main_fraction")


@dataclass(frozen=True)
class DatasetDocument:
    """The whole content of the report.

    `digest` covers all examples. `training_source` and `validation_source` identify the bytes that were read (a commit,
    an ETag, a size; never a URL or a secret). `validation_source` and `validation_rows` are None without a separate
    validation source. `format_name` is the format of the rows, `format_reason` the reason for that choice. `settings`
    are the run's settings for the data, including the thresholds. `end_tokens` has id and text of the tokens at which
    answers end. A rejected dataset has no `digest` and no `analysis`; instead, `refusal` gives the reason.
    """

    training_source: dict[str, Any]
    training_rows: DatasetReport
    settings: dict[str, Any]
    digest: str | None = None
    analysis: Analysis | None = None
    refusal: str | None = None
    validation_source: dict[str, Any] | None = None
    validation_rows: DatasetReport | None = None
    format_name: str | None = None
    format_reason: str | None = None
    end_tokens: tuple[tuple[int, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document as JSON values; equal reports give equal documents."""
        rows, analysis = self.validation_rows, self.analysis
        return {
            "version": VERSION,
            "digest": self.digest,
            "sources": {"training": self.training_source, "validation": self.validation_source},
            "format": {"name": self.format_name, "why": self.format_reason},
            "endTokens": [{"id": token_id, "text": text} for token_id, text in self.end_tokens],
            "settings": self.settings,
            "dataset": self.training_rows.document(),
            "validationDataset": None if rows is None else rows.document(),
            "refusal": self.refusal,
            "statistics": None if analysis is None else as_json(analysis.statistics),
            "warnings": [] if analysis is None else [warning.document() for warning in analysis.warnings],
            "proof": [] if analysis is None else as_json(analysis.proof),
        }


def as_json(value: Any) -> Any:
    """Return dataclasses as objects with camelCase members and fractions, tuples as lists, floats with six digits."""
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        names += [name for name in _DERIVED if isinstance(getattr(type(value), name, None), property)]
        return {_camel(name): as_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def _camel(name: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), name)
