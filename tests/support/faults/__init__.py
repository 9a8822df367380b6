"""Faults between a real operator process and a real API server, for whole lives of FineTuneJobs."""

from __future__ import annotations

from tests.support.repository import ROOT

FAULT_MATRIX = ROOT / ".cache" / "fault-matrix.txt"
"""The last matrix, with the seconds until each recovery. `tests/conftest.py` prints it at the end of its run."""
