"""Exceptions of the dev cluster."""

from __future__ import annotations


class DevClusterError(Exception):
    """The dev cluster cannot carry out a request; the message names the requirement, the finding and the remedy."""


class ApiError(DevClusterError):
    """The API server responded with an error status.

    `status` is the HTTP status code; the message contains the method, the path and the server's message.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
