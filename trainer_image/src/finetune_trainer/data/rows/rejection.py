"""Reasons to reject a single row. contract/reasons.json documents each of them under `row`."""

from __future__ import annotations

from enum import StrEnum


class RowReason(StrEnum):
    """Reason why a row is rejected."""

    INVALID_JSON = "InvalidJson"
    INVALID_CSV = "InvalidCsv"
    INVALID_ENCODING = "InvalidEncoding"
    NOT_AN_OBJECT = "NotAnObject"
    ROW_TOO_LARGE = "RowTooLarge"
    INVALID_MESSAGES = "InvalidMessages"
    UNSUPPORTED_CONTENT = "UnsupportedContent"
    NO_ASSISTANT_TURN = "NoAssistantTurn"
    EMPTY_ANSWER = "EmptyAnswer"
    CONTROL_TOKEN_IN_CONTENT = "ControlTokenInContent"  # noqa: S105 -- a reason, no password
    CONTENT_NOT_RENDERED = "ContentNotRendered"
    TEMPLATE_REFUSED = "TemplateRefused"
    MASK_UNPROVABLE = "MaskUnprovable"
    TOO_LONG = "TooLong"


# These rows cannot be read at all. Many of them point to a wrong file, not to a wrong template.
UNREADABLE = frozenset(
    {
        RowReason.INVALID_JSON,
        RowReason.INVALID_CSV,
        RowReason.INVALID_ENCODING,
        RowReason.NOT_AN_OBJECT,
        RowReason.ROW_TOO_LARGE,
    }
)


class RowRejected(Exception):  # noqa: N818 -- it is a verdict on the row, not an error of the program
    """A row that cannot be proven. `field` names the place in the row; `detail` says what was found there."""

    def __init__(self, reason: RowReason, field: str, detail: str) -> None:
        super().__init__(f"{reason}: {field}: {detail}")
        self.reason = reason
        self.field = field
        self.detail = detail

    def __reduce__(self) -> tuple[type[RowRejected], tuple[RowReason, str, str]]:
        """Pickle rebuilds exceptions from their arguments; by default those are the message alone."""
        return RowRejected, (self.reason, self.field, self.detail)
