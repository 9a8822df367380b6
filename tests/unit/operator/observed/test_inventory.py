from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.api.pod_merge import NodeRules, SelectedLabel
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.observed import inventory as inventory_module
from finetune_operator.sizing.cost.prices import CostSettings
from finetune_operator.sizing.decision import Feasible, Infeasible
from finetune_operator.sizing.gpus.profiles import GpuProfile
from finetune_operator.sizing.ladder import OLDER_ABILITIES
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.request import SizingRequest

from tests.support.operator import CONFIG, make_inventory, make_node, make_spec

GPU = "nvidia.com/gpu"


def make_request(**spec: object) -> SizingRequest:
    return SizingRequest(FineTuneJobSpec.parse(make_spec(**spec)), model_shape(CONFIG), 60)


def test_the_addresses_of_all_nodes_are_known() -> None:
    inventory = make_inventory(make_node("a", addresses=("10.0.0.1", "fd00::1")), make_node("b"))
    assert inventory.node_addresses == {"10.0.0.1", "fd00::1"}
    assert inventory.with_nodes({"b": make_node("b", addresses=("10.0.0.2",))}).node_addresses == {"10.0.0.2"}


def test_offers_come_from_nodes_and_from_gpu_profiles() -> None:
    profile = GpuProfile(name="l4-pool", product="NVIDIA L4", labels={"pool": "l4"})
    inventory = make_inventory(make_node(), profiles=(profile,))
    assert [(offer.node, offer.profile) for offer in inventory.offers(GPU)] == [
        ("gpu1", None),
        (None, "l4-pool"),
    ]
    assert inventory.offers("amd.com/gpu") == ()
    assert inventory.asked_for == {GPU, "amd.com/gpu"}


def test_a_node_has_its_own_offers_and_no_node_has_none() -> None:
    inventory = make_inventory(make_node(), make_node("gpu2"))
    assert [offer.node for offer in inventory.offers_of(make_node("gpu2"), GPU)] == ["gpu2"]
    assert inventory.offers_of(None, GPU) == ()


def test_jobs_that_differ_only_in_irrelevant_fields_share_one_decision() -> None:
    inventory = make_inventory(make_node())
    first = inventory.decide(make_request())
    assert inventory.decide(make_request(training={"seed": 7, "learningRate": 1e-5})) is first
    assert inventory.decide(make_request(resources={"priorityClassName": "high"})) is first
    assert inventory.decide(make_request(resources={"nodeSelector": {"pool": "a"}})) is not first
    assert inventory.decide(make_request(training={"lora": {"rank": 64}})) is not first


def test_jobs_whose_trainers_can_do_different_things_do_not_share_a_decision() -> None:
    inventory = make_inventory(make_node())
    newer, older = make_request(), replace(make_request(), trainer=OLDER_ABILITIES)
    first = inventory.decide(newer)
    assert first.plan.optimizer == "AdamW"
    assert inventory.decide(older).plan.optimizer == "PagedAdamW8Bit"
    assert inventory.decide(newer) is first


def test_jobs_that_may_use_different_nodes_do_not_share_a_decision() -> None:
    inventory = make_inventory(make_node(labels={"pool": "a"}))
    first = inventory.decide(make_request())
    own = make_request(podTemplate={"train": {"nodeSelector": {"pool": "b"}}})
    assert isinstance(inventory.decide(own), Infeasible)
    rules = NodeRules(labels=(SelectedLabel("pool", "b", "trainer.podDefaults.nodeSelector"),))
    assert isinstance(inventory.decide(replace(make_request(), rules=rules)), Infeasible)
    assert inventory.decide(make_request(podTemplate={"prepare": {"nodeSelector": {"pool": "b"}}})) is first


def test_the_number_of_gpus_is_chosen_from_the_nodes_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = make_inventory(make_node(gpus=4))
    request = make_request(resources={"maximumGpus": 8})
    chosen, first = inventory.decide_number(request, None, CostSettings())
    assert chosen.spec.resources.gpus == 1
    assert isinstance(first, Feasible)
    (choice,) = [choice for choice in first.choices if choice.name == "gpus"]
    assert "of at most 8" in choice.reason
    monkeypatch.setattr(inventory_module, "possible_numbers", None)
    monkeypatch.setattr(inventory_module, "decide_training", None)
    assert inventory.with_nodes({}).decide_number(request, None, CostSettings()) == (chosen, first)


def test_other_nodes_keep_the_computed_values() -> None:
    inventory = make_inventory(make_node())
    first = inventory.decide(make_request())
    other = inventory.with_nodes({})
    assert other.nodes == {}
    assert other.decide(make_request()) is first


def test_remembered_decisions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "REMEMBERED_DECISIONS", 2)
    inventory = make_inventory(make_node())
    first = inventory.decide(make_request())
    second = inventory.decide(make_request(training={"maximumLength": 100}))
    assert inventory.decide(make_request()) is first, "used last, so kept longest"
    inventory.decide(make_request(training={"maximumLength": 200}))
    assert inventory.decide(make_request()) is first
    assert inventory.decide(make_request(training={"maximumLength": 100})) is not second
