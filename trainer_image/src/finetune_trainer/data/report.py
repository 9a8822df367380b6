"""Counts of one dataset and the verdict on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows import UNREADABLE, RowReason, RowRefused
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from finetune_trainer.data.example import Example

_EXAMPLES_NAMED = 3
_EXAMPLES_KEPT = 20

REMEDIES = {
    RowReason.INVALID_JSON: "write one JSON object a line",
    RowReason.INVALID_ENCODING: "save the file as UTF-8",
    RowReason.NOT_AN_OBJECT: 'write {"messages": [...]}',
    RowReason.INVALID_MESSAGES: "give every message a role and a content string",
    RowReason.NO_ASSISTANT_TURN: "add the answer",
    RowReason.EMPTY_ANSWER: "fill in or remove the answer",
    RowReason.CONTROL_TOKEN_IN_CONTENT: "remove the control token from the text",
    RowReason.CONTENT_NOT_RENDERED: "use roles and fields that this model's template renders",
    RowReason.TEMPLATE_REFUSED: "follow the template's rules, for example alternate user and assistant",
    RowReason.MASK_UNPROVABLE: "report the row",
    RowReason.TOO_LONG: "raise training.maximumLength or shorten the row",
}


@dataclass
class DatasetReport:
    """What became of the rows of one source. `examples` are the first refused rows of each reason."""

    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    supervised_tokens: int = 0
    longest_example: int = 0
    refused: Counter[RowReason] = field(default_factory=Counter)
    examples: dict[RowReason, list[tuple[int, str, str]]] = field(default_factory=dict)

    def refuse(self, row: int, refusal: RowRefused) -> None:
        """Count a refused row and remember the first ones."""
        self.refused[refusal.reason] += 1
        named = self.examples.setdefault(refusal.reason, [])
        if len(named) < _EXAMPLES_KEPT:
            named.append((row, refusal.field, refusal.detail))

    def keep(self, examples: list[Example]) -> None:
        """Count a row that was proven."""
        self.kept += 1
        for example in examples:
            self.supervised_tokens += example.supervised_tokens
            self.longest_example = max(self.longest_example, len(example.input_ids))

    def require_acceptable(self, maximum_fraction: float, name: str) -> None:
        """Raise StageError if too large a share of the rows was refused.

        MalformedDataset when the lines that cannot be read exceed the share on their own, else InvalidDataset.
        """
        if not self.rows:
            raise StageError(Reason.INVALID_DATASET, f"the {name} must have rows, found none; check the file")
        refused = sum(self.refused.values())
        if refused <= maximum_fraction * self.rows:
            return
        unreadable = sum(count for reason, count in self.refused.items() if reason in UNREADABLE)
        malformed = unreadable > maximum_fraction * self.rows
        reason = Reason.MALFORMED_DATASET if malformed else Reason.INVALID_DATASET
        raise StageError(
            reason,
            f"at most {maximum_fraction:.2%} of the {name}'s rows may be refused, found {refused} of {self.rows}: "
            + "; ".join(self._summary()),
        )

    def document(self) -> dict[str, Any]:
        """Return the report as JSON, with the first refused rows of each reason."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "duplicates": self.duplicates,
            "rejected": {reason.value: count for reason, count in sorted(self.refused.items())},
            "rejectedExamples": {
                reason.value: [{"row": row, "field": place, "found": detail} for row, place, detail in rows]
                for reason, rows in sorted(self.examples.items())
            },
            "supervisedTokens": self.supervised_tokens,
            "longestExample": self.longest_example,
        }

    def _summary(self) -> list[str]:
        texts = []
        for reason, count in self.refused.most_common():
            first = self.examples[reason]
            rows = ", ".join(str(row) for row, _, _ in first[:_EXAMPLES_NAMED])
            more = ", ..." if count > _EXAMPLES_NAMED else ""
            _, place, detail = first[0]
            noun = "row" if count == 1 else "rows"
            texts.append(f"{count} {reason} ({noun} {rows}{more}; {place}: {detail}; {REMEDIES[reason]})")
        return texts
