from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.placement.constraints import (
    NODE_LOCAL_PROVISIONERS,
    ZONELESS_PROVISIONERS,
    ExpandWorkspace,
    InfeasibleWorkspace,
    Placement,
    check_workspace_size,
    compatible_offers,
    model_cache_problem,
    only_gpu_nodes,
    prepare_placement,
    relocation_reason,
    storage_problem,
    volume_problem,
)
from finetune_operator.placement.storage import StorageClass, VolumeRecord, matches
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.gpus.node_terms import Requirement
from finetune_operator.sizing.gpus.nodes import HOSTNAME, NodeRecord

ZONE = "topology.kubernetes.io/zone"
GIB = 2**30
L4 = Gpu("NVIDIA L4", "Nvidia", 22 * GIB)
H100 = Gpu("NVIDIA H100 80GB HBM3", "Nvidia", 79 * GIB)


def make_node(name: str, zone: str | None = None, **labels: str) -> NodeRecord:
    found = {HOSTNAME: name, **({ZONE: zone} if zone else {}), **labels}
    return NodeRecord(name, name, "1", found, {}, (), {}, unschedulable=False, ready=True)


def make_offer(node: str, zone: str | None = None, gpu: Gpu = L4) -> Offer:
    labels = make_node(node, zone).labels
    return Offer(gpu, "nvidia.com/gpu", 1, node=node, labels=labels, zone=zone)


def zonal(**changes: Any) -> StorageClass:
    return StorageClass(
        **{
            "name": "disk",
            "provisioner": "disk.example.com",
            "waits_for_consumer": True,
            "expandable": False,
            **changes,
        }
    )


def bound_in(key: str, *values: str) -> VolumeRecord:
    return VolumeRecord("pv-1", ((Requirement(key, "In", values),),), ("ReadWriteOnce",), 20 * GIB)


def required(placement: Placement) -> list[dict[str, Any]]:
    assert placement.affinity is not None
    terms: list[dict[str, Any]] = placement.affinity["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    return terms


def admitted(placement: Placement, *nodes: NodeRecord) -> set[str]:
    """Names of the nodes that the required terms allow for PREPARE."""
    terms = tuple(
        tuple(
            Requirement(item["key"], item["operator"], tuple(item["values"]))
            for item in term["matchExpressions"]
        )
        for term in required(placement)
    )
    return {node.name for node in nodes if matches(terms, node.labels, node.name)}


CPU_A, CPU_B, CPU_C = make_node("cpu-a", "a"), make_node("cpu-b", "b"), make_node("cpu-c", "c")


def test_a_zonal_workspace_is_created_in_the_zone_of_a_suitable_gpu() -> None:
    placement = prepare_placement([make_offer("gpu-a", "a")], [CPU_A, CPU_B], zonal(), certain=True)
    assert admitted(placement, CPU_A, CPU_B) == {"cpu-a"}
    assert not placement.tolerates_gpu_nodes
    assert placement.affinity is not None
    assert placement.affinity["nodeAffinity"].keys() == {"requiredDuringSchedulingIgnoredDuringExecution"}


def test_the_zone_of_the_largest_gpu_is_preferred_for_an_unknown_model() -> None:
    offers = [make_offer("gpu-a", "a"), make_offer("gpu-b", "b", H100), make_offer("gpu-a2", "a")]
    placement = prepare_placement(offers, [CPU_A, CPU_B, CPU_C], zonal(), certain=False)
    assert admitted(placement, CPU_A, CPU_B, CPU_C) == {"cpu-a", "cpu-b"}
    assert placement.affinity is not None
    weights = {
        entry["preference"]["matchExpressions"][0]["values"][0]: entry["weight"]
        for entry in placement.affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    }
    assert weights == {"b": 100, "a": 1}


def test_a_class_with_allowed_topologies_narrows_the_choice() -> None:
    narrow = zonal(topologies=((Requirement("topology.disk.example.com/zone", "In", ("b", "c")),),))
    offers = [
        Offer(L4, "nvidia.com/gpu", 1, profile="l4", zone=zone, labels={ZONE: zone}) for zone in ("a", "b")
    ]
    placement = prepare_placement(offers, [CPU_A, CPU_B, CPU_C], narrow, certain=True)
    assert admitted(placement, CPU_A, CPU_B, CPU_C) == {"cpu-b"}
    assert storage_problem(narrow, offers) is None
    problem = storage_problem(narrow, offers[:1])
    assert problem is not None
    assert "zone a" in problem
    assert "b, c" in problem


@pytest.mark.parametrize(
    "storage_class",
    [
        None,
        zonal(waits_for_consumer=False),
        *(zonal(provisioner=name) for name in sorted(ZONELESS_PROVISIONERS)),
    ],
    ids=lambda item: "unknown" if item is None else item.provisioner,
)
def test_prepare_is_free_if_the_volume_does_not_follow_the_pod(
    storage_class: StorageClass | None,
) -> None:
    assert prepare_placement([make_offer("gpu-a", "a")], [CPU_A], storage_class, certain=True) == Placement()


def test_prepare_is_free_without_offers_or_zones() -> None:
    assert prepare_placement([], [CPU_A], zonal(), certain=True) == Placement()
    assert prepare_placement([make_offer("gpu")], [make_node("cpu")], zonal(), certain=True) == Placement()


def test_zones_are_only_preferred_if_a_gpu_has_no_known_zone() -> None:
    placement = prepare_placement(
        [make_offer("gpu-a", "a"), make_offer("gpu")], [CPU_A], zonal(), certain=True
    )
    assert placement.affinity is not None
    assert placement.affinity["nodeAffinity"].keys() == {"preferredDuringSchedulingIgnoredDuringExecution"}


def test_prepare_may_use_gpu_nodes_in_a_zone_without_other_nodes() -> None:
    nodes = [make_node("gpu-a", "a"), CPU_B]
    assert prepare_placement([make_offer("gpu-a", "a")], nodes, zonal(), certain=True).tolerates_gpu_nodes


@pytest.mark.parametrize("provisioner", [*sorted(NODE_LOCAL_PROVISIONERS), "own.example.com/local"])
def test_a_node_local_workspace_is_created_on_a_node_with_a_suitable_gpu(provisioner: str) -> None:
    nodes = [make_node("gpu-1"), make_node("gpu-2"), make_node("cpu")]
    placement = prepare_placement(
        [make_offer("gpu-1"), make_offer("gpu-2", gpu=H100)],
        nodes,
        zonal(provisioner=provisioner),
        certain=False,
        node_local={"own.example.com/local"},
    )
    assert admitted(placement, *nodes) == {"gpu-1", "gpu-2"}
    assert placement.tolerates_gpu_nodes
    assert placement.affinity is not None
    first = placement.affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
    assert first["preference"]["matchExpressions"][0]["values"] == ["gpu-2"]


def test_a_node_local_workspace_can_wait_for_a_node_of_the_autoscaler() -> None:
    offer = Offer(L4, "nvidia.com/gpu", 1, profile="l4", labels={"pool": "l4"})
    placement = prepare_placement([offer], [], zonal(provisioner="rancher.io/local-path"), certain=True)
    assert admitted(placement, make_node("new", pool="l4"), make_node("cpu")) == {"new"}


def test_a_bound_volume_decides_and_its_gpu_node_accepts_cpu_stages() -> None:
    offers = [make_offer("gpu-a", "a")]
    nodes = [make_node("gpu-a", "a"), CPU_A, CPU_B]
    local, in_zone = bound_in(HOSTNAME, "gpu-a"), bound_in(ZONE, "a")
    assert prepare_placement(offers, nodes, zonal(), local, certain=True) == Placement(None, True)
    assert prepare_placement(offers, nodes, zonal(), in_zone, certain=True) == Placement()
    assert not only_gpu_nodes(bound_in(HOSTNAME, "cpu-b"), nodes, offers)
    assert only_gpu_nodes(in_zone, [make_node("gpu-a", "a"), CPU_B], offers)


@pytest.mark.parametrize(("key", "value"), [(ZONE, "b"), (HOSTNAME, "cpu-b"), ("example.com/rack", "7")])
def test_a_volume_without_a_suitable_gpu_is_named_with_both_locations(key: str, value: str) -> None:
    problem = volume_problem(bound_in(key, value), [make_offer("gpu-a", "a")], "workspace")
    assert problem is not None
    for part in ("workspace", "pv-1", key, value, "NVIDIA L4", "gpu-a", "zone a"):
        assert part in problem


def test_a_volume_with_a_suitable_gpu_is_no_problem() -> None:
    offers = [make_offer("gpu-a", "a"), make_offer("gpu-b", "b")]
    assert volume_problem(bound_in(ZONE, "b"), offers, "workspace") is None
    assert volume_problem(None, offers, "workspace") is None
    assert volume_problem(bound_in(ZONE, "c"), [], "workspace") is None, (
        "if no GPU is suitable, another reason says so"
    )
    assert compatible_offers([bound_in(ZONE, "b"), None], offers) == (offers[1],)
    assert compatible_offers([bound_in(ZONE, "b"), bound_in(ZONE, "a")], offers) == ()


def test_a_workspace_in_the_wrong_zone_is_recreated_only_before_the_download() -> None:
    wrong, fitting = bound_in(ZONE, "b"), [make_offer("gpu-a", "a")]
    found = relocation_reason(wrong, zonal(), fitting, own_workspace=True, weights_fetched=False)
    assert found is not None
    assert "pv-1" in found
    different: tuple[dict[str, Any], ...] = (
        {"own_workspace": False},
        {"weights_fetched": True},
        {"storage_class": None},
        {"storage_class": zonal(waits_for_consumer=False)},
        {"storage_class": zonal(topologies=((Requirement(ZONE, "In", ("b",)),),))},
        {"volume": bound_in(ZONE, "a")},
        {"fitting": []},
    )
    for changes in different:
        arguments: dict[str, Any] = {
            "volume": wrong,
            "storage_class": zonal(),
            "fitting": fitting,
            "own_workspace": True,
            "weights_fetched": False,
            **changes,
        }
        assert relocation_reason(**arguments) is None, changes


@pytest.mark.parametrize(
    ("modes", "volume", "nodes", "rejected"),
    [
        (["ReadWriteMany"], None, [CPU_A, CPU_B], False),
        (["ReadOnlyMany"], None, [CPU_A, CPU_B], False),
        (["ReadWriteOnce"], None, [CPU_A], False),
        (["ReadWriteOnce"], None, [CPU_A, CPU_B], True),
        (["ReadWriteOnce"], bound_in(HOSTNAME, "cpu-a"), [CPU_A, CPU_B], False),
        (["ReadWriteOnce"], bound_in(ZONE, "a"), [CPU_A, make_node("cpu-a2", "a")], True),
        (["ReadWriteOncePod"], None, [CPU_A], True),
        ([], None, [CPU_A, CPU_B], False),
    ],
)
def test_a_model_cache_must_be_shared_by_the_nodes_that_use_it(
    modes: list[str], volume: VolumeRecord | None, nodes: list[NodeRecord], *, rejected: bool
) -> None:
    problem = model_cache_problem("models", modes, volume, nodes)
    assert (problem is not None) is rejected
    if problem is not None:
        assert "models" in problem
        assert "ReadWriteMany" in problem


def test_a_small_workspace_is_expanded_or_rejected_with_both_sizes() -> None:
    grows = zonal(expandable=True)
    assert check_workspace_size("20Gi", 20 * GIB, "why", grows, own_workspace=True) is None
    found = check_workspace_size("20Gi", 20 * GIB + 1, "why", grows, own_workspace=True)
    assert isinstance(found, ExpandWorkspace)
    assert found.size == "21Gi"
    for storage_class, own in ((zonal(), True), (None, True), (grows, False)):
        rejected = check_workspace_size(
            "20Gi", 58 * GIB, "4-bit model 40 GiB", storage_class, own_workspace=own
        )
        assert isinstance(rejected, InfeasibleWorkspace)
        for part in ("58.0 GiB", "20.0 GiB", "4-bit model", "58Gi"):
            assert part in rejected.message
