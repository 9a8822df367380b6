"""The job that a run belongs to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobIdentity:
    """The job that a run belongs to. The command line has no API server, so it derives a uid from the spec."""

    namespace: str
    name: str
    uid: str
