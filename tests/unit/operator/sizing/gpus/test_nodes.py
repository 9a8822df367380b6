from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import pytest
from finetune_operator.sizing.gpus.nodes import HAMI_REGISTER, project_node
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gpu_nodes import body, gfd, node

L4 = gfd("NVIDIA-L4", 23034)


def test_a_heartbeat_changes_nothing_but_the_version() -> None:
    before = body("a", L4, {"nvidia.com/gpu": "1"})
    after = deepcopy(before)
    after["metadata"]["resourceVersion"] = "2"
    after["metadata"]["labels"]["nvidia.com/gfd.timestamp"] = "1760000000"
    after["metadata"]["annotations"]["hami.io/node-handshake"] = "Reported 2026-01-01"
    for condition in after["status"]["conditions"]:
        condition["lastHeartbeatTime"] = "2026-01-01T00:05:00Z"
    after["status"]["images"] = [{"names": ["a"], "sizeBytes": 1}]
    old, new = project_node(before), project_node(after)
    assert old != new
    assert new.same_as(old)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}},
        {"status": {"allocatable": {"nvidia.com/gpu": "0"}}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        {"metadata": {"labels": {"nvidia.com/gpu.product": "NVIDIA-L40S"}}},
    ],
)
def test_facts_that_decide_where_a_pod_may_run_are_changes(change: dict[str, dict[str, Any]]) -> None:
    before = body("a", L4, {"nvidia.com/gpu": "1"})
    after = deepcopy(before)
    for part, members in change.items():
        after[part].update(members)
    assert not project_node(after).same_as(project_node(before))


def test_a_gpu_node_keeps_every_label_and_another_only_its_topology() -> None:
    labels = {"team": "a", "topology.kubernetes.io/zone": "z", "node.kubernetes.io/instance-type": "m5.large"}
    assert node("gpu", labels, {"nvidia.com/gpu": "1"}).labels["team"] == "a"
    assert node("custom", labels, {"example.com/card": "1"}).labels["team"] == "a"
    assert node("coming", {**labels, **L4}).labels["team"] == "a"
    plain = node("plain", labels)
    assert set(plain.labels) == {"kubernetes.io/hostname", "kubernetes.io/os", *labels} - {"team"}
    assert plain.zone == "z"


def test_only_the_annotation_about_gpus_is_kept() -> None:
    found = node("a", annotations={HAMI_REGISTER: "[]", "kubectl.kubernetes.io/last-applied": "x" * 1000})
    assert dict(found.annotations) == {HAMI_REGISTER: "[]"}


def test_taints_keep_what_tolerations_read() -> None:
    taint = {"key": "a", "value": "b", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}
    assert node("a", taints=[taint, {"key": "c", "effect": "NoSchedule"}]).taints == (
        {"key": "a", "value": "b", "effect": "NoExecute"},
        {"key": "c", "effect": "NoSchedule"},
    )


def test_a_node_without_conditions_is_not_ready() -> None:
    found = project_node({"metadata": {"name": "a", "uid": "u", "resourceVersion": "1"}})
    assert not found.ready
    assert not found.unschedulable
    assert not found.labels
    assert found.zone is None


def test_a_node_keeps_its_addresses_and_its_pod_networks() -> None:
    found = body("a")
    found["spec"]["podCIDRs"] = ["10.1.2.0/24", "fd01::/64"]
    found["status"]["addresses"] = [
        {"type": "InternalIP", "address": "192.168.1.1"},
        {"type": "Hostname", "address": "a"},
        {"type": "ExternalIP", "address": "9.9.9.9"},
    ]
    record = project_node(found)
    assert record.pod_networks == ("10.1.2.0/24", "fd01::/64")
    assert record.addresses == ("192.168.1.1", "9.9.9.9")
    found["spec"] = {"podCIDR": "10.1.2.0/24"}
    assert project_node(found).pod_networks == ("10.1.2.0/24",)
    assert node("b").pod_networks == node("b").addresses == ()


def test_ten_thousand_nodes_stay_small() -> None:
    """Nodes of one kind share their strings: 10,000 without a GPU take a few megabytes."""
    extra = {f"feature.node.kubernetes.io/cpu-{number}": "true" for number in range(60)}
    nodes = [node(f"node-{number}", {**extra, "topology.kubernetes.io/zone": "z"}) for number in range(200)]
    size = sum(sys.getsizeof(item.labels) + sys.getsizeof(item.allocatable) for item in nodes) / len(nodes)
    assert size < 1000
    assert nodes[0].labels["topology.kubernetes.io/zone"] is nodes[1].labels["topology.kubernetes.io/zone"]


@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5),
    st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5),
)
def test_no_label_or_resource_breaks_the_projection(
    labels: dict[str, str], allocatable: dict[str, str]
) -> None:
    found = node("a", labels, allocatable)
    assert found.same_as(node("a", labels, allocatable))
