"""PREPARE's findings about the rows, as typed values within the bounds of the CRD's status schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from finetune_operator.contract.bounded import (
    Count,
    Digest,
    Document,
    Finite,
    Fraction,
    NotNegative,
    Positive,
    PropertyName,
    Text16,
    Text64,
    Text256,
    Text512,
    Word,
)

UNNAMED_WARNING = "Unnamed"
"""Code of a warning from a trainer of contract 1.0, which sent no code."""


class Example(Document):
    """The text that the labels of one row decode to."""

    row: Positive
    learned: Text512


class EndToken(Document):
    """A token that ends an answer, and its text."""

    id: Count
    text: Text64


class RowFormat(Document):
    """The format of the rows, and the reason for choosing it."""

    name: Text64
    why: Text256


class Language(Document):
    """A language and its share of the sampled rows."""

    code: Text16
    fraction: Fraction


class Coverage(Document):
    """The number of target prompts, and the number of those that have a similar training prompt."""

    targets: Count
    covered: Count


class TrainerWarning(Document):
    """A finding for a person. `message` says what was found and what to do."""

    code: Word
    value: Finite | None = None
    threshold: Finite | None = None
    message: Text256


def _as_warning(value: object) -> object:
    """In contract 1.0 a warning is its message alone."""
    return {"code": UNNAMED_WARNING, "message": value} if isinstance(value, str) else value


def _as_text(value: object) -> object:
    """Show a size or a count of a source's identity as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


SourceProperty = Annotated[Text256, BeforeValidator(_as_text)]
SourceIdentity = Annotated[dict[PropertyName, SourceProperty], Field(max_length=16)]
"""Identifies the bytes that were read, by a commit, an ETag or a size. It holds no URL and no secret."""


class DatasetReport(Document):
    """PREPARE's findings about the rows. `longest_example` and `supervised_tokens` are in tokens.

    A trainer before contract 1.9 sends no `training_tokens`, the tokens of all training examples.
    """

    digest: Digest
    rows: Count
    kept: Count
    duplicates: Count = 0
    rejected: Annotated[dict[Word, Positive], Field(max_length=32)]
    training_examples: Count
    validation_examples: Count
    supervised_tokens: Count
    longest_example: Count
    training_tokens: Count | None = None
    format: RowFormat | None = None
    source: SourceIdentity | None = None
    validation_source: SourceIdentity | None = None
    end_tokens: Annotated[tuple[EndToken, ...], Field(max_length=8)] | None = None
    near_duplicates: Count | None = None
    leaked: Count | None = None
    languages: Annotated[tuple[Language, ...], Field(max_length=3)] | None = None
    reasoning_fraction: Fraction | None = None
    prompt_variety: Fraction | None = None
    capacity_ratio: NotNegative | None = None
    coverage: Coverage | None = None
    shortened: Count | None = None
    warnings: Annotated[
        tuple[Annotated[TrainerWarning, BeforeValidator(_as_warning)], ...], Field(max_length=8)
    ]
    example: Example | None = None
