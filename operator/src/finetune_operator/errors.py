"""The errors that the operator raises itself."""

from __future__ import annotations


class OperatorError(Exception):
    """Base of the operator's own errors."""


class SettingsError(OperatorError):
    """The settings file or the environment is unusable, so the operator does not start."""


class InvalidSpecError(OperatorError):
    """The spec of a FineTuneJob is invalid. The message says what must be and what was found."""


class MalformedDocumentError(OperatorError):
    """A trainer's result or progress does not follow the contract, or belongs to another stage."""


class ApiError(OperatorError):
    """The API server responded with a failure.

    `status` is the HTTP status, or 0 if there was no response. `reason` and `message` are those of the Status object.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"the API server responded with {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class ConflictError(OperatorError):
    """The objects that a decision was based on have changed meanwhile. Decide again from fresh ones."""


class ChildRejectedError(OperatorError):
    """The API server rejects a child object at present: because of a quota, an admission policy or a name in use."""


class LeaseLostError(OperatorError):
    """Another replica may already hold the Lease, so this process must end."""
