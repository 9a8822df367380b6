"""Errors of the command line."""

from __future__ import annotations


class UsageError(Exception):
    """A wrong request. The message says what must be and what was found."""
