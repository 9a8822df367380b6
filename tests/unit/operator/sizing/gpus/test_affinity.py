"""Node affinity, judged by a small model of the scheduler's matching."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from finetune_operator.sizing.gpus.affinity import node_affinity, zones
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import HOSTNAME, NodeRecord
from finetune_operator.sizing.gpus.offers import offers
from finetune_operator.sizing.gpus.profiles import parse_gpu_profiles
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.gpu_nodes import GIB, gfd, node, nvidia

GPU = "nvidia.com/gpu"


# ---- the scheduler -------------------------------------------------------------------------------------------------


def requirement_holds(requirement: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    found = values.get(requirement["key"])
    match requirement["operator"]:
        case "In":
            return found is not None and found in requirement["values"]
        case "NotIn":
            return found is None or found not in requirement["values"]
    raise AssertionError(requirement)


def term_matches(term: Mapping[str, Any], name: str, labels: Mapping[str, str]) -> bool:
    expressions, fields = term.get("matchExpressions", []), term.get("matchFields", [])
    assert expressions or fields, "an empty term matches nothing"
    for item in fields:
        assert item["key"] == "metadata.name", "the API server admits no other field"
        assert len(item["values"]) == 1, "the API server admits one value"
    for item in (*expressions, *fields):
        assert item["values"] == sorted(set(item["values"])), item
    return all(requirement_holds(item, labels) for item in expressions) and all(
        requirement_holds(item, {"metadata.name": name}) for item in fields
    )


def required(affinity: Mapping[str, Any]) -> list[dict[str, Any]]:
    terms: list[dict[str, Any]] = affinity["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    return terms


def admits(affinity: Mapping[str, Any], offer: Offer) -> bool:
    name = offer.node or "a-new-node"
    labels = dict(offer.labels) if offer.node else {HOSTNAME: name, **offer.labels}
    return any(term_matches(term, name, labels) for term in required(affinity))


def weight(affinity: Mapping[str, Any], offer: Offer) -> int:
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
    assert all(1 <= item["weight"] <= 100 for item in preferred)
    name = offer.node or "a-new-node"
    labels = dict(offer.labels) if offer.node else {HOSTNAME: name, **offer.labels}
    return sum(item["weight"] for item in preferred if term_matches(item["preference"], name, labels))


def cluster(*nodes: NodeRecord, profiles: Sequence[Mapping[str, Any]] = ()) -> tuple[Offer, ...]:
    return offers(nodes, parse_gpu_profiles(list(profiles)), GPU, allow_time_slicing=False)


def named(found: Sequence[Offer], *names: str) -> list[Offer]:
    return [offer for offer in found if (offer.node or offer.profile) in names]


def check(fitting: Sequence[Offer], everything: Sequence[Offer]) -> dict[str, Any]:
    """The affinity, after a check that it admits only what fits."""
    affinity = node_affinity(fitting, everything)
    for offer in everything:
        assert admits(affinity, offer) == (offer in fitting), offer
    return affinity


# ---- cases ---------------------------------------------------------------------------------------------------------

T4 = nvidia("t4", "Tesla-T4", 15360)
L4 = nvidia("l4", "NVIDIA-L4", 23034)
A10G = nvidia("a10g", "NVIDIA-A10G", 23028)
A100 = nvidia("a100", "NVIDIA-A100-SXM4-80GB", 81920)


def test_every_fitting_product_is_selected_in_one_term() -> None:
    everything = cluster(T4, L4, A10G, A100)
    assert required(check(named(everything, "l4", "a10g", "a100"), everything)) == [
        {
            "matchExpressions": [
                {
                    "key": "nvidia.com/gpu.product",
                    "operator": "In",
                    "values": ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A10G", "NVIDIA-L4"],
                }
            ]
        }
    ]


def test_smaller_gpus_are_preferred_from_100_down_to_1() -> None:
    everything = cluster(T4, L4, A10G, A100)
    affinity = check(everything, everything)
    weights = {offer.node: weight(affinity, offer) for offer in everything}
    assert weights["t4"] == 100
    assert weights["l4"] == weights["a10g"] == 51
    assert weights["a100"] == 1


def test_gpus_of_one_size_need_no_preference() -> None:
    everything = cluster(L4, A10G)
    assert "preferredDuringSchedulingIgnoredDuringExecution" not in check(everything, everything)


def test_a_node_with_two_labels_of_its_gpu_weighs_no_more_than_a_smaller_one() -> None:
    """Weights of all entries that match add up: 51 twice would be more than the smallest's 100."""
    karpenter = {"karpenter.k8s.aws/instance-gpu-name": "l40s"}
    both = nvidia("both", "NVIDIA-L40S", 46068, labels=karpenter)
    everything = cluster(L4, both, node("one", karpenter, {GPU: "1"}), A100)
    affinity = check(everything, everything)
    assert {offer.node: weight(affinity, offer) for offer in everything} == {
        "l4": 100,
        "both": 51,
        "one": 51,
        "a100": 1,
    }


def test_ten_sizes_have_a_weight_and_larger_ones_none() -> None:
    everything = cluster(*(nvidia(f"n{size:02}", f"NVIDIA-Z{size}", size * 1024) for size in range(10, 26)))
    affinity = check(everything, everything)
    weights = [weight(affinity, offer) for offer in sorted(everything, key=lambda offer: offer.node or "")]
    assert weights[0] == 100
    assert weights[9] == 1
    assert weights[:10] == sorted(weights[:10], reverse=True)
    assert not any(weights[10:])


def test_a_label_of_memory_is_never_used() -> None:
    small = nvidia("small", "NVIDIA-Z9", 16000)
    large = nvidia("large", "NVIDIA-Z9", 48000)
    everything = cluster(small, large)
    affinity = check(named(everything, "large"), everything)
    assert "nvidia.com/gpu.memory" not in json.dumps(affinity)
    assert required(affinity)[0]["matchExpressions"][0] == {
        "key": HOSTNAME,
        "operator": "In",
        "values": ["large"],
    }


def test_a_name_of_two_sizes_is_narrowed_by_what_the_autoscaler_knows() -> None:
    def karpenter(name: str, memory: int) -> NodeRecord:
        labels = {
            "karpenter.k8s.aws/instance-gpu-name": "a100",
            "karpenter.k8s.aws/instance-gpu-memory": str(memory),
        }
        return node(name, labels, {GPU: "8"})

    everything = cluster(karpenter("p4d", 40960), karpenter("p4de", 81920))
    (term,) = required(check(named(everything, "p4de"), everything))
    assert {item["key"] for item in term["matchExpressions"]} == {
        "karpenter.k8s.aws/instance-gpu-name",
        "karpenter.k8s.aws/instance-gpu-memory",
    }


def test_the_autoscalers_labels_select_along_with_the_drivers() -> None:
    """Karpenter starts no node for a label that it does not know."""
    labels = {**gfd("NVIDIA-L4", 23034), "karpenter.k8s.aws/instance-gpu-name": "l4"}
    everything = cluster(node("a", labels, {GPU: "1"}), T4)
    keys = [
        term["matchExpressions"][0]["key"] for term in required(check(named(everything, "a"), everything))
    ]
    assert keys == ["nvidia.com/gpu.product", "karpenter.k8s.aws/instance-gpu-name"]


def test_the_same_product_with_too_old_a_driver_is_kept_out() -> None:
    def with_cuda(name: str, major: str) -> NodeRecord:
        return nvidia(name, "NVIDIA-L4", 23034, labels={"nvidia.com/cuda.runtime-version.major": major})

    everything = cluster(with_cuda("old", "12"), with_cuda("new", "13"))
    check(named(everything, "new"), everything)


def test_a_node_that_only_taints_or_a_selector_rule_out_narrows_nothing() -> None:
    """The scheduler keeps the pod from it; names of nodes would also keep the pod from future nodes."""
    tainted = nvidia("tainted", "NVIDIA-L4", 23034, taints=[{"key": "team", "effect": "NoSchedule"}])
    everything = cluster(L4, tainted)
    assert required(node_affinity(named(everything, "l4"), everything)) == required(
        node_affinity(named(everything, "l4"), cluster(L4))
    )


def test_a_time_sliced_node_of_the_same_label_is_kept_out() -> None:
    shared = nvidia("shared", "NVIDIA-L4", 23034, labels={"nvidia.com/gpu.replicas": "4"})
    everything = cluster(L4, shared)
    check(named(everything, "l4"), everything)


def test_a_node_known_by_its_instance_type_is_selected_by_it() -> None:
    everything = cluster(node("a", {"node.kubernetes.io/instance-type": "g5.xlarge"}, {GPU: "1"}), T4)
    (term,) = required(check(named(everything, "a"), everything))
    assert term["matchExpressions"][0]["key"] == "node.kubernetes.io/instance-type"


def test_a_node_without_a_unique_host_name_is_selected_by_its_name() -> None:
    small = nvidia("small", "NVIDIA-Z9", 16000, labels={HOSTNAME: "same"})
    large = nvidia("large", "NVIDIA-Z9", 48000, labels={HOSTNAME: "same"})
    everything = cluster(small, large)
    (term,) = required(check(named(everything, "large"), everything))
    assert "matchFields" in term


PROFILES: list[dict[str, Any]] = [
    {"name": "l4", "product": "L4", "labels": {"pool": "l4"}, "zones": ["a", "b"]},
    {"name": "t4", "product": "T4", "labels": {"pool": "t4"}},
    {"name": "a100", "product": "A100 80GB", "labels": {"pool": "big", "kind": "a100"}},
]


def test_a_profile_is_selected_by_its_own_labels_only() -> None:
    everything = cluster(T4, profiles=PROFILES)
    terms = required(check(named(everything, "l4", "a100"), everything))
    assert [{item["key"] for item in term["matchExpressions"]} for term in terms] == [
        {"pool"},
        {"kind", "pool"},
    ]
    assert zones(named(everything, "l4", "a100")) == {"a", "b"}


def test_smaller_nodes_that_do_not_exist_yet_are_preferred_too() -> None:
    everything = cluster(profiles=PROFILES)
    affinity = check(named(everything, "l4", "a100"), everything)
    (small, *_), (big,) = named(everything, "l4"), named(everything, "a100")
    assert weight(affinity, small) == 100
    assert weight(affinity, big) == 1


def test_a_profile_excludes_a_smaller_one_that_has_its_labels_too() -> None:
    profiles = [
        {"name": "big", "product": "A100 80GB", "labels": {"pool": "gpu"}},
        {"name": "small", "product": "T4", "labels": {"pool": "gpu", "size": "small"}},
    ]
    strange = nvidia("strange", "Tesla-T4", 15360, labels={"pool": "gpu"})
    everything = cluster(strange, profiles=profiles)
    check(named(everything, "big"), everything)


def test_an_affinity_for_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one offer"):
        node_affinity([], cluster(L4))


def test_the_order_of_nodes_changes_nothing() -> None:
    everything = cluster(T4, L4, A10G, A100, profiles=PROFILES)
    fitting = named(everything, "l4", "a10g", "a100")
    assert node_affinity(fitting[::-1], everything[::-1]) == node_affinity(fitting, everything)


# ---- any cluster ---------------------------------------------------------------------------------------------------

LABELS = st.fixed_dictionaries(
    {},
    optional={
        "nvidia.com/gpu.product": st.sampled_from(["NVIDIA-L4", "NVIDIA-A100", "Tesla-T4", "NVIDIA-Z9"]),
        "nvidia.com/gpu.memory": st.sampled_from(["15360", "23034", "40960", "81920"]),
        "nvidia.com/gpu.replicas": st.sampled_from(["1", "2", "4"]),
        "nvidia.com/gpu.sharing-strategy": st.sampled_from(["mps", "time-slicing"]),
        "karpenter.k8s.aws/instance-gpu-name": st.sampled_from(["l4", "a100", "t4"]),
        "karpenter.k8s.aws/instance-gpu-memory": st.sampled_from(["22888", "40960", "81920"]),
        "node.kubernetes.io/instance-type": st.sampled_from(["g6.xlarge", "p4d.24xlarge", "p4de.24xlarge"]),
        "karpenter.sh/nodepool": st.sampled_from(["x", "y"]),
        "pool": st.sampled_from(["x", "y"]),
        HOSTNAME: st.sampled_from(["same", ""]),
    },
)
ANY_PROFILE = st.fixed_dictionaries(
    {
        "product": st.sampled_from(["T4", "L4", "A100 40GB", "A100 80GB"]),
        "labels": st.dictionaries(
            st.sampled_from(["pool", "karpenter.sh/nodepool", "nvidia.com/gpu.product"]),
            st.sampled_from(["x", "y", "NVIDIA-L4"]),
            min_size=1,
        ),
        "zones": st.sampled_from([[], ["a"], ["a", "b"]]),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(LABELS, max_size=7), st.lists(ANY_PROFILE, max_size=3), st.integers(1, 80))
def test_only_fitting_nodes_are_admitted_the_smallest_first(
    labels: list[dict[str, str]], profiles: list[dict[str, Any]], gibibytes: int
) -> None:
    nodes = [node(f"n{place}", found, {GPU: "1"}) for place, found in enumerate(labels)]
    distinct: list[dict[str, Any]] = []
    for index, profile in enumerate(profiles):
        if all(profile["labels"] != other["labels"] for other in distinct):
            distinct.append({"name": f"p{index}", **profile})
    everything = cluster(*nodes, profiles=distinct)
    fitting = [
        offer
        for offer in everything
        if offer.exclusion_reason is None and (offer.gpu.usable_bytes or 0) >= gibibytes * GIB
    ]
    if not fitting:
        return
    affinity = check(fitting, everything)
    sizes = sorted({offer.gpu.usable_bytes or 0 for offer in fitting})
    if len(sizes) > 1:
        lightest = dict.fromkeys(sizes, 10**6)
        heaviest = dict.fromkeys(sizes, 0)
        for offer in fitting:
            if offer.node is None:
                continue
            size = offer.gpu.usable_bytes or 0
            lightest[size] = min(lightest[size], weight(affinity, offer))
            heaviest[size] = max(heaviest[size], weight(affinity, offer))
        for small, large in pairwise(sizes):
            assert lightest[small] > heaviest[large]
