"""How many objects a page of a list has: few at first, and then as many as fit into a number of bytes.

A FineTuneJob has 10 KB or 2 MB, and takes five times as much memory while it is read. The peak stays with the process, so
what counts is the size of a page and not the number of its objects.
"""

from __future__ import annotations

FIRST_PAGE = 20
"""Objects of the first page, whose size nobody knows before."""
PAGE_BYTES = 512 * 1024
"""Bytes of a page, unless one object alone has more."""


def next_limit(limit: int, count: int, size: int, most: int) -> int:
    """Objects of the next page, at most `most`, after a page of `count` objects and `size` bytes with the limit `limit`."""
    if count == 0:
        return limit
    fitting = PAGE_BYTES * count // max(size, 1)
    return max(1, min(most, 2 * limit, fitting))
