from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.pod_merge import NodeRules, SelectedTerms
from finetune_operator.api.pods import NodeTerm, Toleration
from finetune_operator.placement.stage_nodes import apart_message, node_test, shared_offers
from finetune_operator.placement.storage import StorageClass
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.offers import offers

from tests.support.gpu_nodes import node, nvidia, selecting

ZONE = "topology.kubernetes.io/zone"
GPU = "nvidia.com/gpu"
TAINT = {"key": "team", "value": "a", "effect": "NoSchedule"}
NODE_LOCAL = StorageClass("local", "rancher.io/local-path", waits_for_consumer=True, expandable=False)
ZONAL = StorageClass("zonal", "disk.example.com", waits_for_consumer=True, expandable=False)
SHARED = StorageClass("files", "nfs.csi.k8s.io", waits_for_consumer=True, expandable=False)
AT_ONCE = StorageClass("now", "disk.example.com", waits_for_consumer=False, expandable=False)


def gpus(*records: Any) -> tuple[Offer, ...]:
    return offers(records, (), GPU, allow_time_slicing=False)


AMD = nvidia("amd", "NVIDIA-L4", 23034, labels={ZONE: "a", "kubernetes.io/arch": "amd64"})
ARM = nvidia("arm", "NVIDIA-L4", 23034, labels={ZONE: "b", "kubernetes.io/arch": "arm64"})


@pytest.mark.parametrize(
    ("storage_class", "selector", "expected"),
    [
        (NODE_LOCAL, {"kubernetes.io/arch": "arm64"}, ["arm"]),
        (NODE_LOCAL, {"kubernetes.io/arch": "riscv64"}, []),
        (ZONAL, {"kubernetes.io/arch": "riscv64"}, ["amd", "arm"]),
        (ZONAL, {ZONE: "b"}, ["arm"]),
        (ZONAL, {ZONE: "c"}, []),
        (SHARED, {ZONE: "c"}, ["amd", "arm"]),
        (AT_ONCE, {ZONE: "c"}, ["amd", "arm"]),
        (None, {ZONE: "c"}, ["amd", "arm"]),
    ],
)
def test_a_volume_binds_the_cpu_stages_to_the_node_or_zone_of_the_gpu(
    storage_class: StorageClass | None, selector: dict[str, str], expected: list[str]
) -> None:
    found = shared_offers([NodeRules(), selecting(selector)], gpus(AMD, ARM), storage_class)
    assert [offer.node for offer in found] == expected


def test_an_own_taint_of_a_gpu_node_counts_only_where_the_disk_is_its_own() -> None:
    tainted = gpus(nvidia("n", "NVIDIA-L4", 23034, labels={ZONE: "a"}, taints=[TAINT]))
    assert shared_offers([NodeRules()], tainted, NODE_LOCAL) == ()
    assert shared_offers([NodeRules()], tainted, ZONAL) == tainted
    tolerant = NodeRules(tolerations=(Toleration(key="team", operator="Exists"),))
    assert shared_offers([tolerant], tainted, NODE_LOCAL) == tainted


def test_an_offer_without_a_zone_may_suit() -> None:
    unknown = gpus(nvidia("n", "NVIDIA-L4", 23034))
    assert shared_offers([selecting({ZONE: "b"})], unknown, ZONAL) == unknown


def test_the_message_names_the_rules_and_the_class() -> None:
    message = apart_message([selecting({"a": "b"})], gpus(AMD), NODE_LOCAL)
    assert "in the node of a suitable GPU (NVIDIA L4 on node amd in zone a)" in message
    assert "class local" in message
    assert "(resources.nodeSelector)" in message
    assert "(tolerations)" in apart_message([NodeRules()], gpus(AMD), NODE_LOCAL)


def exists(key: str) -> NodeRules:
    term = NodeTerm.model_validate({"matchExpressions": [{"key": key, "operator": "Exists"}]})
    return NodeRules(terms=(SelectedTerms((term,), "podTemplate.prepare.nodeSelectorTerms"),))


@pytest.mark.parametrize(
    ("rules", "labels", "expected"),
    [
        (selecting({"kubernetes.io/arch": "amd64"}), {"kubernetes.io/arch": "arm64"}, False),
        (selecting({"kubernetes.io/arch": "amd64"}), {}, False),
        (selecting({"kubernetes.io/hostname": "cpu"}), {}, True),
        (selecting({"pool": "a"}), {}, True),
        (exists("pool"), {}, True),
        (exists("kubernetes.io/arch"), {}, False),
    ],
)
def test_unknown_labels_of_a_node_without_a_gpu_are_assumed_to_match(
    rules: NodeRules,
    labels: dict[str, str],
    expected: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    assert node_test(rules, ())(node("cpu", labels)) == expected


def test_labels_of_a_gpu_node_are_known() -> None:
    assert not node_test(selecting({"pool": "a"}), gpus(AMD))(AMD)
    assert node_test(selecting({"kubernetes.io/arch": "amd64"}), gpus(AMD))(AMD)


@pytest.mark.parametrize(
    ("taint", "expected"),
    [
        (TAINT, False),
        ({**TAINT, "effect": "PreferNoSchedule"}, True),
        ({"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}, True),
    ],
)
def test_a_lasting_taint_keeps_a_cpu_stage_away_from_a_cpu_node(
    taint: dict[str, str],
    expected: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    record = node("cpu", {}, taints=[taint])
    assert node_test(NodeRules(), ())(record) == expected
    assert node_test(NodeRules(tolerations=(Toleration(operator="Exists"),)), ())(record)
