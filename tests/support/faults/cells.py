"""The rows of the fault matrix: what the operator asks of the API server, and a story of a job in which it does so."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.faults.calls import LIST, REHEARSE, WATCH
from tests.support.faults.kinds import Kind
from tests.support.faults.life import Story


@dataclass(frozen=True)
class Row:
    """One verb of one resource. `provoked` is a fault that makes the operator use it."""

    verb: str
    resource: str
    story: Story = Story.PLAIN
    restarts: bool = False
    """The operator starts while the fault is there, because it uses the verb only then."""
    provoked: tuple[Kind, str, str] | None = None

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


ROWS = (
    *(Row(LIST, each, restarts=True) for each in ("finetunejobs", "jobs", "pods", "persistentvolumeclaims")),
    Row(LIST, "nodes", restarts=True),
    Row(LIST, "storageclasses", restarts=True),
    Row(LIST, "events", Story.SLOW),
    *(Row(WATCH, each) for each in ("finetunejobs", "jobs", "pods", "persistentvolumeclaims", "nodes")),
    Row("GET", "finetunejobs", provoked=(Kind.CONFLICT, "PATCH", "finetunejobs/status")),
    Row("GET", "jobs", provoked=(Kind.RESET_AFTER, "POST", "jobs")),
    Row("GET", "persistentvolumeclaims"),
    Row("GET", "persistentvolumes"),
    Row("GET", "leases"),
    Row("POST", "jobs"),
    Row("POST", "persistentvolumeclaims"),
    Row("POST", "events"),
    Row("POST", "leases", restarts=True),
    Row(REHEARSE, "jobs"),
    Row(REHEARSE, "persistentvolumeclaims"),
    Row("PATCH", "finetunejobs/status"),
    Row("PATCH", "jobs", Story.SUSPENDED),
    Row("PATCH", "persistentvolumeclaims", Story.EXPANDED),
    Row("PATCH", "events", Story.SUSPENDED),
    Row("PUT", "leases"),
    Row("DELETE", "jobs"),
    Row("DELETE", "pods"),
    Row("DELETE", "persistentvolumeclaims"),
)
"""Everything that the operator asks for."""


@dataclass(frozen=True)
class Cell:
    """A row and a kind of fault."""

    row: Row
    kind: Kind

    @property
    def count(self) -> int:
        """Requests at which the fault strikes. The client tries four times before it gives up."""
        if self.row.resource == "leases" and self.kind not in {Kind.HALF_OPEN, Kind.DUPLICATED}:
            # A leader gives up after ten seconds without a renewal.
            return 3
        special = {Kind.HALF_OPEN: 1, Kind.DROPPED: 3, Kind.DUPLICATED: 1000, Kind.LATENCY: 4}
        return special.get(self.kind, 4 if self.row.verb == WATCH else 6)

    @property
    def bound(self) -> float:
        """Seconds after the last hit within which the operator must have recovered."""
        match self.kind:
            case Kind.HALF_OPEN:
                # Each request is given up after 30 s.
                return 60.0
        return 45.0

    def __str__(self) -> str:
        return f"{self.row}, {self.kind.value}"


CELLS = tuple(Cell(row, kind) for row in ROWS for kind in Kind if kind.fits(row.verb))
