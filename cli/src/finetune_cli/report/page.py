"""Makes a page from a volume safe to open: pods with a model's own code can write to the volume, too."""

from __future__ import annotations

import re

from finetune_cli.errors import UsageError

_ACTIVE = re.compile(
    rb"<\s*(script|iframe|frame|object|embed|base|form|link|meta\b[^>]*refresh)", re.IGNORECASE
)
"""Tags that the trainer never writes. Text of users has no tags, because the trainer escapes it."""
_POLICY = (
    b'<!DOCTYPE html>\n<meta http-equiv="Content-Security-Policy" content="'
    b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n"
)


def safe_page(content: bytes) -> bytes:
    """Return the page under a policy that lets a browser run no script and load nothing.

    Raises UsageError for a page with a tag that could do so, or lead elsewhere.
    """
    found = _ACTIVE.search(content)
    if found is not None:
        tag = found[1].decode().split()[0].lower()
        raise UsageError(
            f"the page must have no tag that runs or loads anything, found <{tag}>: something other than the trainer wrote it; "
            "read -o json instead"
        )
    return _POLICY + content
