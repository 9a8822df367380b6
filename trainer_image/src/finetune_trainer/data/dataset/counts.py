"""Counts the rows of one source, keeps the first rejected ones, and decides if too many were rejected."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.conversations.conversation import answer_of, is_empty_answer
from finetune_trainer.data.rows.excerpts import excerpt
from finetune_trainer.data.rows.rejection import UNREADABLE, RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.data.conversations.conversation import Conversation
    from finetune_trainer.data.masking.example import Example

_EXAMPLES_NAMED = 3
_REASONS_NAMED = 3
_EXAMPLES_KEPT = 20
_CONTENT_CHARACTERS = 200
_DETAIL_CHARACTERS = 300
# Redaction must see a secret whole, so far more text is read than shown.
_CONTENT_READ = 1 << 20
_COUNTS = (
    "rows", "kept", "duplicates", "held_out_copies", "with_reasoning", "empty_answers", "escaped", "shortened",
    "supervised_tokens", "longest_example",
)  # fmt: skip

REMEDIES = {
    RowReason.INVALID_JSON: "write one JSON object per line",
    RowReason.INVALID_CSV: "quote fields that contain the separator, quotes or line breaks, and double the quotes in them",
    RowReason.INVALID_ENCODING: "save the file as UTF-8",
    RowReason.NOT_AN_OBJECT: 'write {"messages": [...]}',
    RowReason.ROW_TOO_LARGE: "split or remove the row",
    RowReason.INVALID_MESSAGES: "give every message a role and a content string",
    RowReason.UNSUPPORTED_CONTENT: "remove the row, or describe the part in text",
    RowReason.NO_ASSISTANT_TURN: "add the answer",
    RowReason.EMPTY_ANSWER: "add the text that follows the reasoning, remove the row, or keep the reasoning",
    RowReason.CONTROL_TOKEN_IN_CONTENT: "remove the control token from the text, or set dataset.controlTokens to Escape",
    RowReason.CONTENT_NOT_RENDERED: "use roles and fields that this model's template renders",
    RowReason.TEMPLATE_REFUSED: "follow the template's rules, for example alternate user and assistant",
    RowReason.MASK_UNPROVABLE: "report the row",
    RowReason.TOO_LONG: "raise training.maximumLength or shorten the row",
}


@dataclass(frozen=True)
class RejectedRow:
    """A rejected row: its number, the place in it, the finding there, and the beginning of its content."""

    row: int
    field: str
    detail: str
    content: str | None = None


@dataclass
class DatasetReport:
    """Counts of the rows of one source.

    `kept` counts proven rows without repetitions. `duplicates` repeat a row of the same source, and `held_out_copies`
    repeat a row of the validation source. `with_reasoning` counts kept rows with a reasoning trace, `empty_answers`
    those with an answer that says nothing, `escaped` those that mention control tokens as plain text, and `shortened`
    those that lost earlier turns to the maximum length.
    `supervised_tokens` and `longest_example` are in tokens. `examples` holds the first rejected rows of each reason.
    """

    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    held_out_copies: int = 0
    with_reasoning: int = 0
    empty_answers: int = 0
    escaped: int = 0
    shortened: int = 0
    supervised_tokens: int = 0
    longest_example: int = 0
    rejected: Counter[RowReason] = field(default_factory=Counter)
    examples: dict[RowReason, list[RejectedRow]] = field(default_factory=dict)
    redact: Callable[[str], str] = field(default=str, repr=False, compare=False)

    @property
    def rejected_rows(self) -> int:
        """Number of rejected rows for all reasons."""
        return sum(self.rejected.values())

    def reject(self, row: int, rejection: RowRejected, content: Any = None) -> None:
        """Count a rejected row. The first ones are kept, with the beginning of `content` (JSON or text)."""
        self.rejected[rejection.reason] += 1
        named = self.examples.setdefault(rejection.reason, [])
        if len(named) < _EXAMPLES_KEPT:
            detail = excerpt(self.redact(rejection.detail), _DETAIL_CHARACTERS)
            place = excerpt(self.redact(rejection.field), _DETAIL_CHARACTERS)
            named.append(RejectedRow(row, place, detail, self._shortened(content)))

    def keep(self, examples: list[Example], *, reasoning: bool = False, empty: bool = False) -> None:
        """Count a proven row; `reasoning` and `empty` are the results of `has_reasoning` and `has_empty_answer`."""
        self.kept += 1
        self.with_reasoning += reasoning
        self.empty_answers += empty
        self.escaped += any(example.escaped for example in examples)
        self.shortened += any(example.dropped_turns for example in examples)
        for example in examples:
            self.supervised_tokens += example.supervised_tokens
            self.longest_example = max(self.longest_example, len(example.input_ids))

    def require_acceptable(self, maximum_fraction: float, name: str) -> None:
        """Raise StageError if more than `maximum_fraction` of the rows was rejected.

        The reason is MalformedDataset if the unreadable rows alone exceed the fraction, else InvalidDataset.
        """
        if not self.rows:
            raise StageError(Reason.INVALID_DATASET, f"the {name} must have rows, found none; check the file")
        rejected = self.rejected_rows
        if rejected > maximum_fraction * self.rows:
            raise self._too_many(
                maximum_fraction,
                f"at most {maximum_fraction:.2%} of the {name}'s rows may be rejected, found {rejected} of {self.rows}",
            )

    def require_kept(self) -> None:
        """Raise StageError if all rows were rejected. The reason is that of `require_acceptable`."""
        if self.rejected_rows and not self.kept:
            raise self._too_many(
                0.0, f"at least one row must be accepted, found all {self.rejected_rows} rejected"
            )

    def _too_many(self, maximum_fraction: float, message: str) -> StageError:
        unreadable = sum(count for reason, count in self.rejected.items() if reason in UNREADABLE)
        malformed = unreadable > maximum_fraction * self.rows
        reason = Reason.MALFORMED_DATASET if malformed else Reason.INVALID_DATASET
        return StageError(reason, f"{message}. {self.summary()}")

    def document(self) -> dict[str, Any]:
        """Return the report as JSON, with the first rejected rows of each reason."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "duplicates": self.duplicates,
            "heldOutCopies": self.held_out_copies,
            "withReasoning": self.with_reasoning,
            "emptyAnswers": self.empty_answers,
            "escaped": self.escaped,
            "shortened": self.shortened,
            "rejected": {reason.value: count for reason, count in sorted(self.rejected.items())},
            "rejectedExamples": {
                reason.value: [
                    {"row": item.row, "field": item.field, "found": item.detail, "content": item.content}
                    for item in items
                ]
                for reason, items in sorted(self.examples.items())
            },
            "remedies": {reason.value: REMEDIES[reason] for reason in sorted(self.rejected)},
            "supervisedTokens": self.supervised_tokens,
            "longestExample": self.longest_example,
        }

    def to_state(self) -> dict[str, Any]:
        """Return everything counted so far as JSON for `from_state`."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            # The key is part of the format of markers and ledgers.
            "refused": {reason.value: count for reason, count in self.rejected.items()},
            "examples": {
                reason.value: [asdict(item) for item in items] for reason, items in self.examples.items()
            },
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], redact: Callable[[str], str] = str) -> DatasetReport:
        """Restore the report from the JSON of `to_state`."""
        return cls(
            **{name: int(state[name]) for name in _COUNTS},
            rejected=Counter({RowReason(name): count for name, count in state["refused"].items()}),
            examples={
                RowReason(name): [RejectedRow(**item) for item in items]
                for name, items in state["examples"].items()
            },
            redact=redact,
        )

    def _shortened(self, content: Any) -> str | None:
        if content is None:
            return None
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        return excerpt(self.redact(text[:_CONTENT_READ]), _CONTENT_CHARACTERS)

    def summary(self) -> str:
        """Return sentences about the most frequent reasons, and about the number of the others."""
        texts = []
        reasons = self.rejected.most_common()
        for reason, count in reasons[:_REASONS_NAMED]:
            named = self.examples[reason][:_EXAMPLES_NAMED]
            rows = ", ".join(str(item.row) for item in named) + (", ..." if count > len(named) else ".")
            texts.append(
                f"{count} {reason} in {'row' if count == 1 else 'rows'} {rows} "
                f"Row {named[0].row}, {named[0].field}: {named[0].detail}. Remedy: {REMEDIES[reason]}."
            )
        if others := reasons[_REASONS_NAMED:]:
            texts.append(", ".join(f"{count} {reason}" for reason, count in others) + ".")
        return " ".join(texts)


def has_reasoning(conversation: Conversation) -> bool:
    """Return True if a learned answer has a reasoning trace, in a separate field or as `<think>`."""
    return any((answer_of(answer).reasoning or "").strip() for answer in _learned(conversation))


def has_empty_answer(conversation: Conversation) -> bool:
    """Return True if a learned answer says nothing: the model then learns to end its turn at once."""
    return any(is_empty_answer(answer) for answer in _learned(conversation))


def _learned(conversation: Conversation) -> list[dict[str, Any]]:
    return [conversation.messages[index] for index in conversation.assistant_turns]
