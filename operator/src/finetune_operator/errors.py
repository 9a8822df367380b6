"""Every error that the operator raises on purpose."""

from __future__ import annotations


class OperatorError(Exception):
    """Base of the operator's own errors."""


class SettingsError(OperatorError):
    """The settings file or the environment is not what the operator needs; start-up stops."""


class InvalidSpecError(OperatorError):
    """A FineTuneJob cannot be carried out as written. The message says what must be and what was found."""


class MalformedDocumentError(OperatorError):
    """A trainer's result or progress does not follow the contract, or speaks of another stage."""


class ApiError(OperatorError):
    """The API server answered with a failure.

    `status` is the HTTP status, `reason` the Status object's reason, `message` its text.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"API server answered {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class ConflictError(OperatorError):
    """What the decision was based on has changed meanwhile; decide again from fresh objects."""


class ChildRejectedError(OperatorError):
    """The API server will not take a child object now: quota, admission policy or a taken name."""


class LeaseLostError(OperatorError):
    """Another replica may hold the Lease by now, so this process must end."""
