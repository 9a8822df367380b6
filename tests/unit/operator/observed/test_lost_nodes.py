from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.observed.lost_nodes import (
    CONFIRMATION,
    OUT_OF_SERVICE,
    confirmation_time,
    lost_node,
    unconfirmed_end,
)
from finetune_operator.observed.observation import Pod
from finetune_operator.sizing.gpus.nodes import NodeRecord

from tests.support.operator import NOW, make_inventory, make_node
from tests.support.world import started


def make_pod(**changes: Any) -> Pod:
    pod = started().run_pod("demo-prepare-0")
    return replace(pod, **{"deleting": True, "deletion_time": NOW, **changes})


def tainted(key: str) -> NodeRecord:
    return make_node("node1", taints=({"key": key, "effect": "NoExecute"},))


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ((), "does not exist any more"),
        ((tainted(OUT_OF_SERVICE),), "is out of service"),
        ((tainted("node.kubernetes.io/unreachable"),), None),
        ((make_node("node1", ready=False),), None),
        ((make_node("node1"),), None),
    ],
)
def test_a_node_is_lost_only_if_it_is_gone_or_out_of_service(
    nodes: tuple[NodeRecord, ...], found: str | None
) -> None:
    text = lost_node(make_pod(), make_inventory(*nodes))
    assert text is None if found is None else found in (text or "")


@pytest.mark.parametrize(
    "changes", [{"deleting": False}, {"node": ""}, {"phase": "Failed"}, {"phase": "Succeeded"}]
)
def test_only_a_pod_that_hangs_in_its_deletion_is_lost(changes: dict[str, Any]) -> None:
    assert lost_node(make_pod(**changes), make_inventory()) is None


def test_without_knowledge_of_nodes_none_is_lost() -> None:
    assert lost_node(make_pod(), make_inventory(problem="not allowed")) is None


def test_a_pods_end_must_be_confirmed_half_a_minute_after_its_grace_period() -> None:
    pods = [make_pod(), make_pod(deletion_time=NOW + timedelta(minutes=2)), make_pod(deleting=False)]
    assert confirmation_time(pods) == NOW + CONFIRMATION
    assert confirmation_time(pods[2:]) is None
    inventory = make_inventory(make_node("node1", ready=False))
    due = NOW + CONFIRMATION
    assert unconfirmed_end(pods, inventory, due - timedelta(seconds=1)) is None
    text = unconfirmed_end(pods, inventory, due)
    assert text is not None
    for part in ("demo-prepare-0", "node1, which is not ready,", OUT_OF_SERVICE):
        assert part in text
    assert unconfirmed_end(pods, inventory, due + timedelta(hours=1)) == text, "the text stays the same"
    unknown = unconfirmed_end(pods, make_inventory(problem="not allowed"), due)
    assert unknown is not None
    assert "which is unknown," in unknown
    assert unconfirmed_end([make_pod()], make_inventory(), due) is None, "a lost node needs no advice"
