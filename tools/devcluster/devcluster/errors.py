"""What the dev cluster raises."""

from __future__ import annotations


class DevClusterError(Exception):
    """The dev cluster cannot do what was asked; the text says what must be, what was found and the remedy."""


class ApiError(DevClusterError):
    """The API server answered with an error status.

    `status` is the HTTP status code; the text carries the method, the path and the server's message.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
