"""Warnings about the base model and its agreement with the run, one policy for each code.

docs/dataset-report.md describes every code, like those of `warnings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.report.warnings import DatasetWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the base model that the report needs.

    `context` is the number of tokens that the rotary embedding covers, None if nothing says so. `largest_token` is the
    tokenizer's largest id, and its text is `token_text`. `ignored_files` has the reason for each small file that is not
    used.
    """

    maximum_length: int
    longest_example: int
    context: int | None
    largest_token: int
    token_text: str
    embedding_rows: int
    ignored_files: Mapping[str, str] = field(default_factory=dict)


def model_warnings(facts: ModelFacts) -> list[DatasetWarning]:
    """Return the warnings for these facts."""
    found = (policy(facts) for policy in MODEL_POLICIES.values())
    return [warning for warning in found if warning is not None]


def _beyond_context(facts: ModelFacts) -> DatasetWarning | None:
    if facts.context is None or facts.maximum_length <= facts.context:
        return None
    return DatasetWarning(
        "BeyondContext", facts.maximum_length, facts.context,
        f"training.maximumLength is above the model's context of {facts.context} tokens, and the longest row has "
        f"{facts.longest_example}; lower training.maximumLength, or choose a model with a longer context",
    )  # fmt: skip


def _tokens_without_embedding(facts: ModelFacts) -> DatasetWarning | None:
    if facts.largest_token < facts.embedding_rows:
        return None
    return DatasetWarning(
        "TokensWithoutEmbedding", facts.largest_token, facts.embedding_rows - 1,
        f"the tokenizer has ids up to {facts.largest_token} ({facts.token_text[:40]}), and the embedding has "
        f"{facts.embedding_rows} rows; no row of the dataset has such a token, but a request with one would fail",
    )  # fmt: skip


def _files_ignored(facts: ModelFacts) -> DatasetWarning | None:
    if not facts.ignored_files:
        return None
    named = ", ".join(f"{name}: {reason}" for name, reason in sorted(facts.ignored_files.items()))
    return DatasetWarning(
        "FilesIgnored",
        len(facts.ignored_files),
        0,
        f"files of the model were not used ({named}); remove them",
    )


MODEL_POLICIES: dict[str, Callable[[ModelFacts], DatasetWarning | None]] = {
    "BeyondContext": _beyond_context,
    "TokensWithoutEmbedding": _tokens_without_embedding,
    "FilesIgnored": _files_ignored,
}
