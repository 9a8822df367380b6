"""Every kind of fault: what begins it, and what ends it."""

from __future__ import annotations

from tests.support.simulation import faults_in_the_cluster, faults_on_the_way
from tests.support.simulation.fault_kinds import FAULTS
from tests.support.simulation.faults_in_the_cluster import USERS_CLAIMS

__all__ = ["FAULTS", "USERS_CLAIMS", "faults_in_the_cluster", "faults_on_the_way"]
