"""What the command line refuses."""

from __future__ import annotations


class UsageError(Exception):
    """The request cannot be carried out as given. The message says what must be and what was found."""
