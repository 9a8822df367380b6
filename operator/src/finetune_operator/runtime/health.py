"""Decides from measured values if this replica works. Pure: values in, problems out.

A replica that is not live is restarted, so only faults of the process count. If the API server is down, the watches keep
trying, and a restart would help nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

WORK_LIMIT = 300.0
"""Seconds. No healthy reconcile takes this long, because every request has a time limit and few tries."""
LAG_LIMIT = 5.0
"""Seconds by which the event loop may be late for long. The Lease must be renewed within 10 s."""
WATCH_LIMIT = 180.0
"""Seconds without a sign of life. Kopf ends a silent watch after 70 s, and tries again after at most 45 s."""
LEASE_LIMIT = 30.0
"""Seconds since the last renewal, twice the validity of the Lease. Before that, the elector ends the process itself."""


class Role(Enum):
    """The part of a replica in the election."""

    STARTING = "starting"
    STANDBY = "standby"
    LEADER = "leader"


@dataclass(frozen=True)
class Vitals:
    """What is measured. All times are in seconds."""

    role: Role = Role.STARTING
    seeded: bool = False
    """The store has all that decisions need."""
    filled: bool = False
    """The store also has the FineTuneJobs that have ended."""
    longest_work: float = 0.0
    """Duration of the longest current reconcile."""
    loop_lag: float = 0.0
    """The event loop has been late by at least this much for several seconds."""
    watches: Mapping[str, float] = field(default_factory=dict)
    """Time since the last sign of life of each watch, by the plural of its kind, after `NAMESPACE/` if it is of one."""
    namespaces: Mapping[str, bool] = field(default_factory=dict)
    """Whether each namespace of `watchNamespaces` can be read. One that cannot is no fault of the process."""
    lease_age: float | None = None
    """Time since the last renewal of the Lease; None if this replica does not hold one."""


def liveness(vitals: Vitals) -> tuple[str, ...]:
    """Why the process must be restarted; empty if it is healthy."""
    problems = []
    if vitals.longest_work > WORK_LIMIT:
        problems.append(f"a reconcile has taken {vitals.longest_work:.0f} s")
    if vitals.loop_lag > LAG_LIMIT:
        problems.append(f"the event loop is late by {vitals.loop_lag:.0f} s")
    problems += [
        f"the watch of {plural} has shown no sign of life for {age:.0f} s"
        for plural, age in sorted(vitals.watches.items())
        if age > WATCH_LIMIT
    ]
    if vitals.role is Role.LEADER and vitals.lease_age is not None and vitals.lease_age > LEASE_LIMIT:
        problems.append(f"the Lease was last renewed {vitals.lease_age:.0f} s ago")
    return tuple(problems)


def readiness(vitals: Vitals) -> tuple[str, ...]:
    """Why the replica is not ready; empty if it leads with a filled store, or stands by for the Lease."""
    if vitals.role is Role.STARTING:
        return ("the replica neither leads nor stands by yet",)
    if vitals.role is Role.LEADER and not vitals.seeded:
        return ("the store is still being filled",)
    return ()
