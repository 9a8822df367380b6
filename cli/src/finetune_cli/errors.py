"""Errors of the command line."""

from __future__ import annotations


class ClosedOutputError(Exception):
    """The reader of the output closed it. click ends the process with 1 if it sees a BrokenPipeError."""


class UsageError(Exception):
    """A wrong request. The message says what must be and what was found."""
