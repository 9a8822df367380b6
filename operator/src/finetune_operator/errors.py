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
    `fields` are the fields that its details name, and `missing_namespace` is true if it misses the namespace.
    `retry_after` is the time in seconds for which the API server asks, or 0. `rest` is the token with which a list whose
    version has expired goes on, or empty.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        fields: tuple[str, ...] = (),
        missing_namespace: bool = False,
        retry_after: float = 0.0,
        rest: str = "",
    ) -> None:
        super().__init__(f"the API server responded with {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.fields = fields
        self.missing_namespace = missing_namespace
        self.retry_after = retry_after
        self.rest = rest


class FencedError(ApiError):
    """The write was not sent, because the Lease may have expired. Its status is 0, as for any request without a response."""

    def __init__(self) -> None:
        super().__init__(0, "Fenced", "a write needs a Lease that is held, but this one may have expired")


class ConflictError(OperatorError):
    """The objects that a decision was based on have changed meanwhile. Decide again from fresh ones."""


class ChildRejectedError(OperatorError):
    """The API server refuses an action: because of a quota, an admission policy, a name in use or an invalid object.

    `final` is true if the object is invalid, so that asking again is of no use. `kind` is equal for refusals with the
    same cause.
    """

    def __init__(self, message: str, *, kind: str = "", final: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.final = final


class StatusRefusedError(OperatorError):
    """The API server refuses a status for its content. `fields` are those that it names."""

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


class LeaseLostError(OperatorError):
    """Another replica may already hold the Lease, so this process must end."""
