from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.placement.storage import (
    StorageClass,
    describe_terms,
    find_storage_class,
    is_node_local,
    matches,
    project_storage_class,
    project_volume,
    reachable,
)
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.gpus.node_terms import Requirement
from finetune_operator.sizing.gpus.nodes import HOSTNAME
from hypothesis import given
from hypothesis import strategies as st

ZONE = "topology.kubernetes.io/zone"
EBS = "topology.ebs.csi.aws.com/zone"
L4 = Gpu("NVIDIA L4", "Nvidia", 22 * 2**30)

keys = st.sampled_from(["a", "b", ZONE])
values = st.sampled_from(["1", "2", "10", "x", "-3", "1_0", "٣"])
labels = st.dictionaries(keys, values, max_size=3)
requirements = st.builds(
    Requirement,
    keys,
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Novel"]),
    st.lists(values, max_size=3).map(tuple),
)
terms = st.lists(st.lists(requirements, max_size=3).map(tuple), max_size=3).map(tuple)


def one(key: str, operator: str, *found: str) -> tuple[tuple[Requirement, ...], ...]:
    return ((Requirement(key, operator, found),),)


@given(terms, labels)
def test_one_term_is_enough_but_all_its_requirements_must_hold(
    some: tuple[tuple[Requirement, ...], ...], node: dict[str, str]
) -> None:
    alone = [matches((term,), node, "n") for term in some]
    assert matches(some, node, "n") == any(alone)
    for term, whole in zip(some, alone, strict=True):
        assert whole == (bool(term) and all(matches(((item,),), node, "n") for item in term))


@given(keys, st.lists(values, min_size=1, max_size=3), labels)
def test_opposite_operators_never_agree(key: str, wanted: list[str], node: dict[str, str]) -> None:
    assert matches(one(key, "In", *wanted), node, "n") != matches(one(key, "NotIn", *wanted), node, "n")
    assert matches(one(key, "Exists"), node, "n") != matches(one(key, "DoesNotExist"), node, "n")


@given(terms, labels)
def test_a_running_node_reaches_a_volume_by_the_schedulers_rules(
    some: tuple[tuple[Requirement, ...], ...], node: dict[str, str]
) -> None:
    offer = Offer(L4, "nvidia.com/gpu", 1, node="n", labels=node)
    assert reachable(some, offer) == matches(some, {HOSTNAME: "n", **node}, "n")


def test_every_node_satisfies_no_terms_and_no_node_an_empty_term() -> None:
    assert matches(None, {}, "n")
    assert not matches((), {}, "n")
    assert not matches(((),), {}, "n")


@pytest.mark.parametrize(
    ("key", "operator", "value", "labels", "zone", "expected"),
    [
        (EBS, "In", "a", {}, "a", True),
        (EBS, "In", "a", {}, "b", False),
        (EBS, "In", "a", {}, None, True),
        (ZONE, "In", "a", {ZONE: "b"}, "b", False),
        (HOSTNAME, "In", "n1", {}, "a", False),
        ("topology.topolvm.io/node", "Exists", "", {}, "a", False),
        ("example.com/rack", "In", "7", {}, "a", True),
        ("example.com/rack", "In", "7", {"example.com/rack": "8"}, "a", False),
    ],
)
def test_unknown_labels_of_a_future_node_match_but_never_another_host(
    key: str, operator: str, value: str, labels: dict[str, str], zone: str | None, *, expected: bool
) -> None:
    offer = Offer(L4, "nvidia.com/gpu", 1, profile="l4", labels=labels, zone=zone)
    assert reachable(one(key, operator, *filter(None, [value])), offer) is expected


def test_a_starting_node_may_still_get_the_label_of_its_storage_driver() -> None:
    offer = Offer(L4, "nvidia.com/gpu", 1, node="n", state="Provisioning", zone="a", labels={ZONE: "a"})
    assert reachable(one(EBS, "In", "a"), offer)
    assert not reachable(one(EBS, "In", "b"), offer)
    assert reachable(one(HOSTNAME, "In", "n"), offer)
    assert not reachable(one(HOSTNAME, "In", "m"), offer)


def volume(**changes: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "pv", "labels": changes.pop("labels", {})},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "20Gi"}, **changes},
    }


def test_a_volume_is_read_with_its_expressions_and_fields() -> None:
    record = project_volume(
        volume(
            storageClassName="fast",
            nodeAffinity={
                "required": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["a"]}]},
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
                    ]
                }
            },
        )
    )
    assert (record.capacity, record.access_modes, record.storage_class) == (
        20 * 2**30,
        ("ReadWriteOnce",),
        "fast",
    )
    assert matches(record.terms, {ZONE: "a"}, "other")
    assert matches(record.terms, {ZONE: "b"}, "n1")
    assert not matches(record.terms, {ZONE: "b", "metadata.name": "n1"}, "other")
    assert describe_terms(record.terms) == f"{ZONE} in a or metadata.name in n1"


def test_zones_in_labels_alone_restrict_a_volume_too() -> None:
    record = project_volume(volume(labels={"failure-domain.beta.kubernetes.io/zone": "a__b"}))
    assert matches(record.terms, {"failure-domain.beta.kubernetes.io/zone": "b"}, "n")
    assert not matches(record.terms, {"failure-domain.beta.kubernetes.io/zone": "c"}, "n")
    assert project_volume(volume()).terms is None


def test_a_storage_class_is_read_with_its_binding_mode_and_topologies() -> None:
    record = project_storage_class(
        {
            "metadata": {
                "name": "fast",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "ebs.csi.aws.com",
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": True,
            "allowedTopologies": [{"matchLabelExpressions": [{"key": EBS, "values": ["a", "b"]}]}],
        }
    )
    assert (record.waits_for_consumer, record.expandable, record.default) == (True, True, True)
    assert record.topologies == one(EBS, "In", "a", "b")
    plain = project_storage_class({"metadata": {"name": "nfs"}, "provisioner": "nfs.csi.k8s.io"})
    assert (plain.waits_for_consumer, plain.expandable, plain.default, plain.topologies) == (
        False,
        False,
        False,
        (),
    )


def test_a_claim_without_a_class_gets_the_newest_default_one() -> None:
    old = StorageClass(
        "old", "p", waits_for_consumer=False, expandable=False, default=True, created="2024-01-01"
    )
    new = StorageClass(
        "new", "p", waits_for_consumer=False, expandable=False, default=True, created="2025-01-01"
    )
    other = StorageClass("other", "p", waits_for_consumer=False, expandable=False, created="2026-01-01")
    assert find_storage_class(None, [new, old, other]) == new
    assert find_storage_class("other", [new, old, other]) == other
    assert find_storage_class("", [new, old, other]) is None
    assert find_storage_class(None, [other]) is None


def test_node_local_volumes_are_recognized_by_their_terms() -> None:
    assert is_node_local(one(HOSTNAME, "In", "n"))
    assert is_node_local(one("topology.topolvm.io/node", "In", "n"))
    assert is_node_local(((Requirement("metadata.name", "In", ("n",), field=True),),))
    assert not is_node_local(one(ZONE, "In", "a"))
    assert not is_node_local(None)
