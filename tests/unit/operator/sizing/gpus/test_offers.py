"""Offers of a cluster's GPUs, with their state and the pods that may use them."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.pod_merge import NodeRules, SelectedTerms
from finetune_operator.api.pods import NodeTerm, Toleration
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import HAMI_REGISTER, NodeRecord
from finetune_operator.sizing.gpus.offers import (
    eligible,
    gpu_taint_keys,
    offers,
    other_offers,
    parse_gpu_profiles,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gpu_nodes import gfd, node, nvidia, selecting

GPU = "nvidia.com/gpu"


def one(record: NodeRecord, resource_name: str = GPU) -> Offer:
    (found,) = offers([record], (), resource_name, allow_time_slicing=False)
    return found


# ---- states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "state"),
    [
        ({}, "Available"),
        ({"unschedulable": True}, "Cordoned"),
        ({"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]}, "Cordoned"),
        ({"ready": False}, "NotReady"),
        ({"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]}, "NotReady"),
        ({"taints": [{"key": "node.cilium.io/agent-not-ready", "effect": "NoExecute"}]}, "NotReady"),
        ({"taints": [{"key": "node.cluster.x-k8s.io/uninitialized", "effect": "NoSchedule"}]}, "NotReady"),
        (
            {
                "taints": [
                    {"key": "startup-taint.cluster-autoscaler.kubernetes.io/gpu", "effect": "NoSchedule"}
                ]
            },
            "NotReady",
        ),
        ({"count": 0}, "Provisioning"),
    ],
)
def test_a_node_that_cannot_run_a_pod_now_is_offered_with_its_state(
    others: dict[str, Any], state: str
) -> None:
    found = one(nvidia("a", "NVIDIA-L4", 23034, **others))
    assert found.state == state
    assert found.count >= 1
    # Such taints pass with the state: they do not rule the node out for good.
    assert eligible(found, NodeRules()) is None


def test_a_node_whose_driver_is_starting_is_known_by_its_cloud() -> None:
    found = one(node("a", {"cloud.google.com/gke-accelerator": "nvidia-l4"}))
    assert (found.state, found.count) == ("Provisioning", 1)


@pytest.mark.parametrize(("amount", "count"), [("8", 8), ("2k", 2000), ("1e1", 10)])
def test_the_count_of_a_node_may_be_any_whole_quantity(amount: str, count: int) -> None:
    assert one(node("a", gfd("NVIDIA-L4", 23034), {GPU: amount})).count == count


def test_nodes_without_a_gpu_offer_nothing() -> None:
    records = [
        node("a", {"node.kubernetes.io/instance-type": "m5.large"}),
        node("b", {"node.kubernetes.io/instance-type": "g4ad.xlarge"}),
        node("c", {"amd.com/gpu.vram": "64G"}, {"amd.com/gpu": "1"}),
        node("d", gfd("NVIDIA-L4", 23034), {"nvidia.com/gpu.shared": "4"}),
    ]
    assert offers(records, (), GPU, allow_time_slicing=True) == ()


def test_another_resource_name_is_offered_if_a_node_has_it() -> None:
    records = [node("a", {"team": "x"}, {"example.com/gpu": "2"}), nvidia("b", "NVIDIA-L4", 23034)]
    (found,) = offers(records, (), "example.com/gpu", allow_time_slicing=False)
    assert (found.node, found.count, found.gpu.vendor, found.gpu.usable_bytes) == ("a", 2, "Unknown", None)


def test_other_resources_are_those_of_slices_shares_and_profiles() -> None:
    profile = {"name": "amd", "product": "MI300X", "resourceName": "amd.com/gpu", "labels": {"pool": "amd"}}
    records = [
        node("a", gfd("NVIDIA-A100-SXM4-80GB", 81920), {GPU: "0", "nvidia.com/mig-3g.40gb": "2"}),
        node("b", gfd("NVIDIA-L4", 23034), {"nvidia.com/gpu.shared": "4", "nvidia.com/gpumem": "90000"}),
        node("c", {}, {"nvidia.com/mig-1g.10gb": "0", "example.com/nic": "1", "hugepages-1Gi": "2"}),
        nvidia("d", "NVIDIA-L4", 23034),
    ]
    found = other_offers(records, parse_gpu_profiles([profile]), GPU, allow_time_slicing=False)
    assert {(offer.resource_name, offer.node or offer.profile) for offer in found} == {
        ("amd.com/gpu", "amd"),
        ("nvidia.com/gpu.shared", "b"),
        ("nvidia.com/mig-3g.40gb", "a"),
    }
    assert other_offers((), (), GPU, allow_time_slicing=False) == ()


def test_a_profile_names_the_start_up_taints_of_its_nodes() -> None:
    profile = {
        "name": "l4",
        "product": "L4",
        "labels": {"pool": "l4"},
        "startupTaints": ["example.com/setup"],
    }
    starting = nvidia(
        "a", "NVIDIA-L4", 23034, taints=[{"key": "example.com/setup", "value": "x", "effect": "NoSchedule"}]
    )
    known, _ = offers([starting], parse_gpu_profiles([profile]), GPU, allow_time_slicing=False)
    assert (known.state, eligible(known, NodeRules())) == ("NotReady", None)
    unknown = one(starting)
    assert (unknown.state, eligible(unknown, NodeRules()) is None) == ("Available", False)


# ---- who may use an offer ------------------------------------------------------------------------------------------

TAINT = {"key": "team", "value": "a", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("toleration", "taint", "may"),
    [
        (None, {**TAINT, "effect": "PreferNoSchedule"}, True),
        (None, {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}, True),
        (None, TAINT, False),
        ({"key": "team", "value": "a"}, TAINT, True),
        ({"key": "team", "value": "b"}, TAINT, False),
        ({"key": "team", "operator": "Exists"}, TAINT, True),
        ({"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}, TAINT, True),
        ({"key": "team", "operator": "Exists", "effect": "NoExecute"}, TAINT, False),
        ({"operator": "Exists"}, TAINT, True),
        ({"key": "team", "operator": "Equal"}, {"key": "team", "effect": "NoSchedule"}, True),
    ],
)
def test_taints_and_tolerations_match_as_in_the_scheduler(
    toleration: dict[str, Any] | None,
    taint: dict[str, str],
    may: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    found = one(nvidia("a", "NVIDIA-L4", 23034, taints=[taint]))
    tolerations = () if toleration is None else (Toleration.model_validate(toleration),)
    assert (eligible(found, NodeRules(tolerations=tolerations)) is None) == may


def test_the_plain_gpu_taint_of_a_slice_is_tolerated() -> None:
    assert gpu_taint_keys("nvidia.com/mig-1g.5gb") == ("nvidia.com/mig-1g.5gb", GPU)
    assert gpu_taint_keys("amd.com/gpu") == ("amd.com/gpu",)


@pytest.mark.parametrize(
    ("selector", "may"),
    [
        ({}, True),
        ({"pool": "a"}, True),
        ({"kubernetes.io/hostname": "n", "kubernetes.io/os": "linux"}, True),
        ({"pool": "b"}, False),
        ({"other": "a"}, False),
        ({"kubernetes.io/arch": "amd64"}, False),
    ],
)
def test_a_node_selector_must_match_the_nodes_labels(selector: dict[str, str], may: bool) -> None:  # noqa: FBT001 -- a case's outcome
    found = one(nvidia("n", "NVIDIA-L4", 23034, labels={"pool": "a"}))
    assert (eligible(found, selecting(selector)) is None) == may


def choosing(*expressions: dict[str, Any]) -> NodeRules:
    terms = tuple(NodeTerm.model_validate({"matchExpressions": [item]}) for item in expressions)
    return NodeRules(terms=(SelectedTerms(terms, "trainer.podDefaults.train.nodeSelectorTerms"),))


@pytest.mark.parametrize(
    ("expressions", "may"),
    [
        ([{"key": "pool", "operator": "In", "values": ["a", "b"]}], True),
        ([{"key": "pool", "operator": "NotIn", "values": ["a"]}], False),
        ([{"key": "tier", "operator": "Exists"}, {"key": "pool", "operator": "Exists"}], True),
        ([{"key": "cores", "operator": "Gt", "values": ["15"]}], True),
        ([{"key": "cores", "operator": "Lt", "values": ["16"]}], False),
    ],
)
def test_one_of_the_pods_own_terms_must_match_the_nodes_labels(
    expressions: list[dict[str, Any]],
    may: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    found = one(nvidia("n", "NVIDIA-L4", 23034, labels={"pool": "a", "cores": "16"}))
    why = eligible(found, choosing(*expressions))
    assert (why is None) == may
    assert why is None or why.startswith("trainer.podDefaults.train.nodeSelectorTerms requires ")


def test_a_rejected_selector_is_named_with_the_field_that_asks_for_it() -> None:
    found = one(nvidia("n", "NVIDIA-L4", 23034))
    assert eligible(found, selecting({"pool": "b"})) == (
        "resources.nodeSelector requires pool=b, but node n does not have this label"
    )


def test_a_gpu_of_another_operating_system_does_not_count() -> None:
    found = one(nvidia("n", "NVIDIA-L4", 23034, labels={"kubernetes.io/os": "windows"}))
    assert eligible(found, NodeRules()) == "it runs windows, and the trainer's image needs Linux"


# ---- any labels at all ---------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        *(f"nvidia.com/gpu.{end}" for end in ("product", "memory", "count", "replicas", "sharing-strategy")),
        *(f"nvidia.com/mig-1g.5gb.{end}" for end in ("product", "memory", "count")),
        *("nvidia.com/gpu.compute.major", "nvidia.com/cuda.driver-version.major", "nvidia.com/mig.strategy"),
        *("amd.com/gpu.vram", "beta.amd.com/gpu.vram.16G", "amd.com/gpu.product-name"),
        *("karpenter.k8s.aws/instance-gpu-name", "karpenter.k8s.aws/instance-gpu-memory"),
        *("cloud.google.com/gke-accelerator", "cloud.google.com/gke-gpu-partition-size"),
        *("node.kubernetes.io/instance-type", "accelerator"),
    ]
)
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers(-5, 10**12).map(str),
    st.sampled_from(
        [
            "NVIDIA-L4",
            "A100",
            "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",
            "t4",
            "g5.xlarge",
            "mps",
            "16G",
            "1g.5gb",
            "²",
        ]
    ),
)


@given(
    st.dictionaries(KEYS, VALUES, max_size=8),
    st.sampled_from([GPU, "nvidia.com/mig-1g.5gb", "amd.com/gpu", "nvidia.com/gpu.shared", "example.com/x"]),
    st.sampled_from(["0", "1", "8", "x", "", "1k"]),
    st.text(max_size=30),
)
def test_no_labels_break_the_inventory(
    labels: dict[str, str], resource: str, amount: str, annotation: str
) -> None:
    record = node("a", labels, {resource: amount}, annotations={HAMI_REGISTER: annotation})
    for found in offers([record], (), resource, allow_time_slicing=False):
        assert found.gpu.usable_bytes is None or found.gpu.usable_bytes >= 0
        assert found.count >= 1
        assert found.gpu.source
        eligible(found, selecting({"a": "b"}))
        for identity in found.selector_labels:
            assert identity.items() <= found.labels.items()
