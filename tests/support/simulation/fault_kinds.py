"""What a kind of fault is, and the register of all kinds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.simulation.life import Life

End = Callable[[], None]
Begin = Callable[["Life", random.Random], End | None]


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    begin: Begin
    """Begins the fault, and returns what ends it; None if there is nothing that it could hit."""
    longest: float
    """Seconds."""
    replicas: int = 1
    """Number of operators that it needs."""
    harmless: bool = False
    """True if it costs no work: no job fails for it, and no stage runs twice."""


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, longest: float = 60.0, *, replicas: int = 1, harmless: bool = False
) -> Callable[[Begin], Begin]:
    def add(begin: Begin) -> Begin:
        FAULTS[name] = Fault(name, begin, longest, replicas, harmless)
        return begin

    return add


def nothing() -> None:
    """A fault that needs no end."""
