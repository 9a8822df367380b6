"""The kinds of faults, and one fault that strikes at some requests of an operator."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from tests.support.faults.calls import WATCH, Call


class Kind(Enum):
    """What happens to a request. The value is the head of a column of the matrix."""

    CONFLICT = "409"
    EXPIRED = "410"
    TOO_MANY = "429"
    INTERNAL = "500"
    UNAVAILABLE = "503"
    LATENCY = "latency"
    RESET_BEFORE = "reset before"
    RESET_AFTER = "reset after"
    HALF_OPEN = "half-open"
    UNAUTHORIZED = "401"
    DROPPED = "dropped"
    DUPLICATED = "duplicated"
    CLOSED = "closed"

    def fits(self, verb: str) -> bool:
        """True if a request of this verb can meet the fault."""
        return verb == WATCH or self not in {Kind.DROPPED, Kind.DUPLICATED, Kind.CLOSED}


STATUSES = {
    Kind.CONFLICT: (409, "Conflict"),
    Kind.EXPIRED: (410, "Expired"),
    Kind.TOO_MANY: (429, "TooManyRequests"),
    Kind.INTERNAL: (500, "InternalError"),
    Kind.UNAVAILABLE: (503, "ServiceUnavailable"),
    Kind.UNAUTHORIZED: (401, "Unauthorized"),
}
"""Status code and reason of the faults that are an answer."""
RETRY_AFTER = 2
"""Seconds that a 429 asks for."""
LATENCY = 2.0
"""Seconds by which an answer is late."""


@dataclass
class Fault:
    """A fault that strikes at the first `count` requests of `verb` and `resource`, or at their watch events.

    UNAUTHORIZED strikes at every request with another token than `token`. `count` does not bound it. `first` is called
    at its first hit, before the answer.
    """

    kind: Kind
    verb: str
    resource: str
    count: int
    token: str = ""
    first: Callable[[], None] = lambda: None
    hits: list[float] = field(default_factory=list)
    """Times at which it struck, of the monotonic clock in seconds."""
    recovered: float | None = None
    """Time at which the server answered such a request after the last hit."""

    def matches(self, call: Call) -> bool:
        """True if it concerns this request, whether or not it is over."""
        return (self.verb, self.resource) == (call.verb, call.resource)

    @property
    def over(self) -> bool:
        """True if it strikes no more. UNAUTHORIZED is over as soon as another token was used."""
        return self.recovered is not None if self.kind is Kind.UNAUTHORIZED else len(self.hits) >= self.count

    def strike(self) -> bool:
        """Count a hit; returns False if the fault is over."""
        if self.over:
            return False
        self.hits.append(time.monotonic())
        if len(self.hits) == 1:
            self.first()
        return True

    def answer(self) -> None:
        """Note that the server answered such a request after the last hit."""
        ends = self.over or self.kind in {Kind.UNAUTHORIZED, Kind.LATENCY}
        if self.hits and ends and (self.recovered is None or self.recovered < self.hits[-1]):
            self.recovered = time.monotonic()
