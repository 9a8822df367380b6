from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.cluster.node_store import GpuStore
from finetune_operator.sizing.decision import Feasible, Infeasible
from finetune_operator.sizing.gpus.nodes import NodeRecord
from finetune_operator.sizing.gpus.profiles import GpuProfile
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.request import SizingRequest

from tests.support.operator import CONFIG, make_node, make_spec

GPU = "nvidia.com/gpu"


def make_store(*profiles: GpuProfile) -> GpuStore:
    return GpuStore(profiles, allow_time_slicing=False)


def make_plain_node() -> NodeRecord:
    """A node without a GPU."""
    return replace(make_node("plain"), allocatable={"cpu": "4"}, labels={"kubernetes.io/hostname": "plain"})


def make_request(**training: object) -> SizingRequest:
    return SizingRequest(FineTuneJobSpec.parse(make_spec(training=training)), model_shape(CONFIG), 60)


def test_a_heartbeat_is_no_change() -> None:
    store = make_store()
    store.put(make_node(resource_version="1"))
    before = store.inventory
    assert before.offers(GPU)
    assert not store.put(make_node(resource_version="2"))
    assert store.inventory is before


def test_a_change_of_a_requested_gpu_is_a_change() -> None:
    store = make_store()
    assert store.inventory.offers(GPU) == ()
    assert store.put(make_node(resource_version="1"))
    changes: tuple[dict[str, Any], ...] = ({"unschedulable": True}, {"ready": False}, {"allocatable": {}})
    for version, change in enumerate(changes, start=2):
        assert store.inventory.offers(GPU)
        assert store.put(make_node(resource_version=str(version), **change))
    assert store.remove("gpu1", "uid-gpu1")
    assert store.inventory.offers(GPU) == ()


def test_a_change_counts_even_directly_after_one_that_did_not() -> None:
    """It may be that no job asks again between two changes."""
    store = make_store()
    assert store.inventory.offers(GPU) == ()
    assert not store.put(make_plain_node())
    assert store.put(make_node(resource_version="2"))
    assert store.put(make_node("gpu2", resource_version="3"))


def test_a_node_without_such_gpus_is_no_change_and_keeps_the_cached_decisions() -> None:
    store = make_store()
    store.put(make_node())
    decision = store.inventory.decide(make_request())
    assert not store.put(make_plain_node())
    assert "plain" in store.inventory.nodes
    assert store.inventory.decide(make_request()) is decision


def test_an_older_version_and_a_late_deletion_change_nothing() -> None:
    store = make_store()
    store.put(make_node(uid="new", resource_version="5"))
    assert not store.put(make_node(uid="old", resource_version="4", unschedulable=True))
    assert not store.remove("gpu1", "old")
    assert len(store) == 1
    assert not store.inventory.nodes["gpu1"].unschedulable


def test_a_list_replaces_every_node_that_is_not_newer() -> None:
    store = make_store()
    for node in (make_node("deleted"), make_node("newer", resource_version="9", unschedulable=True)):
        store.put(node)
    assert store.inventory.offers(GPU)
    assert store.replace([make_node("newer", resource_version="8"), make_node("joined")], 8)
    assert set(store.inventory.nodes) == {"newer", "joined"}
    assert store.inventory.nodes["newer"].unschedulable
    assert not store.replace([make_node("newer", resource_version="8"), make_node("joined")], 8)


def test_a_node_that_joined_after_a_list_stays_and_a_deleted_one_does_not_return() -> None:
    store = make_store()
    store.put(make_node("joined", resource_version="9"))
    store.put(make_node("deleted", resource_version="3"))
    store.remove("deleted", "uid-deleted", 7)
    store.replace([make_node("deleted", resource_version="3")], 6)
    assert set(store.inventory.nodes) == {"joined"}
    assert not store.put(make_node("deleted", resource_version="3"))
    assert len(store) == 1


def test_without_access_to_nodes_only_gpu_profiles_are_left() -> None:
    profile = GpuProfile(name="l4", product="NVIDIA L4", labels={"pool": "l4"})
    store = make_store(profile)
    store.put(make_node())
    assert store.fail("not allowed")
    assert not store.fail("not allowed")
    assert store.inventory.problem == "not allowed"
    assert [offer.profile for offer in store.inventory.offers(GPU)] == ["l4"]
    assert store.replace([make_node()], 1)
    assert store.inventory.problem is None


def test_a_decision_is_remembered_until_the_gpus_change() -> None:
    store = make_store()
    assert isinstance(store.inventory.decide(make_request()), Infeasible)
    store.put(make_node())
    first = store.inventory.decide(make_request())
    assert isinstance(first, Feasible)
    assert store.inventory.decide(make_request()) is first
    assert store.inventory.decide(make_request(seed=1)) is first, "the seed needs no memory"
    assert store.inventory.decide(make_request(maximumLength=4096)) is not first
