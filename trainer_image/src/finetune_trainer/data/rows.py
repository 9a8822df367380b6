"""Why a single row is refused. Each reason is documented in contract/reasons.json under `row`."""

from __future__ import annotations

from enum import StrEnum


class RowReason(StrEnum):
    """Reason of a refused row."""

    INVALID_JSON = "InvalidJson"
    INVALID_ENCODING = "InvalidEncoding"
    NOT_AN_OBJECT = "NotAnObject"
    INVALID_MESSAGES = "InvalidMessages"
    NO_ASSISTANT_TURN = "NoAssistantTurn"
    EMPTY_ANSWER = "EmptyAnswer"
    CONTROL_TOKEN_IN_CONTENT = "ControlTokenInContent"  # noqa: S105 -- a reason, no password
    CONTENT_NOT_RENDERED = "ContentNotRendered"
    TEMPLATE_REFUSED = "TemplateRefused"
    MASK_UNPROVABLE = "MaskUnprovable"
    TOO_LONG = "TooLong"


# Rows that could not even be read: too many of them mean another file, not another template.
UNREADABLE = frozenset({RowReason.INVALID_JSON, RowReason.INVALID_ENCODING, RowReason.NOT_AN_OBJECT})


class RowRefused(Exception):  # noqa: N818 -- it is a verdict on the row, not an error of the program
    """A row that cannot be proven. `field` names the place in the row, `detail` what was found there."""

    def __init__(self, reason: RowReason, field: str, detail: str) -> None:
        super().__init__(f"{reason}: {field}: {detail}")
        self.reason = reason
        self.field = field
        self.detail = detail
