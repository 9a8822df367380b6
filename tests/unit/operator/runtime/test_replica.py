"""The order of a replica's parts. `tests/simulation` runs whole replicas."""

from __future__ import annotations

import time

from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.runtime.replica import Replica
from prometheus_client import CollectorRegistry

from tests.support.operator import SETTINGS


def make_replica() -> Replica:
    metrics = OperatorMetrics(CollectorRegistry())
    return Replica(SETTINGS, metrics, time.monotonic, identity="p", namespace="n")


async def test_a_standby_is_live_and_ready() -> None:
    replica = make_replica()
    assert replica.live() is None
    assert replica.ready() is None


async def test_a_leader_is_ready_only_after_its_store_is_filled() -> None:
    replica = make_replica()
    replica.leading = True
    assert replica.ready() == "the store is still being filled"
    replica.seeded = True
    assert replica.ready() is None
