from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.plan import Layout
from finetune_operator.sizing.decision import decide_training
from finetune_operator.sizing.gpus.gpu import Offer, Sharing
from finetune_operator.sizing.layout import (
    allowed_numbers,
    choose_layout,
    layout_choices,
    places,
    too_few,
    unsuitable,
    widest_layout,
    with_gpus,
)

from tests.support.sizing_jobs import RESOURCE, feasible, infeasible, make_request, make_spec, product

L4 = product("NVIDIA L4")


def nodes(*counts: int) -> list[Offer]:
    """One node for each number of GPUs."""
    return [Offer(L4, RESOURCE, count, node=f"node{index}") for index, count in enumerate(counts)]


def profile(count: int) -> Offer:
    return Offer(L4, RESOURCE, count, profile="pool")


@pytest.mark.parametrize(
    ("gpus", "given", "counts", "nodes_and_gpus"),
    [
        (1, None, [8], (1, 1)),
        (8, None, [8, 8], (1, 8)),
        (8, None, [4, 4, 4], (2, 4)),
        # 6 = 3 pods of 2, because no node has 3 more GPUs after the first one.
        (6, None, [5, 2], (3, 2)),
        (6, None, [4, 4], (2, 3)),
        # The smaller pods have a place, although one larger one would fit.
        (4, None, [3, 1], (4, 1)),
        # More nodes like this may join.
        (8, None, [2], (4, 2)),
        (4, None, [], (4, 1)),
        (4, 2, [8], (2, 2)),
        (4, 4, [1, 1], (1, 4)),
    ],
)
def test_pods_are_as_large_as_the_nodes_have_room_for(
    gpus: int, given: int | None, counts: list[int], nodes_and_gpus: tuple[int, int]
) -> None:
    resources = make_spec(gpus=gpus, gpusPerNode=given).resources
    assert choose_layout(resources, nodes(*counts)) == Layout(*nodes_and_gpus)


def test_an_autoscaler_has_room_for_every_pod_of_its_size() -> None:
    assert choose_layout(make_spec(gpus=16).resources, [*nodes(1), profile(8)]) == Layout(2, 8)
    assert places([profile(8)], 8) == float("inf")
    assert places([profile(4), *nodes(8)], 8) == 1


@pytest.mark.parametrize(
    ("resources", "layout"),
    [
        ({"gpus": 4}, Layout(2, 2)),
        # Without gpusPerNode, the chosen number is one of a single node, whose volume may be of one node.
        ({"maximumGpus": 4}, Layout(1, 4)),
        ({"maximumGpus": 4, "gpusPerNode": 2}, Layout(2, 2)),
        ({"maximumGpus": 7, "gpusPerNode": 2}, Layout(3, 2)),
        ({"maximumGpus": 3, "gpusPerNode": 2}, Layout(1, 2)),
    ],
)
def test_volumes_suit_the_most_pods_that_a_job_may_get(resources: dict[str, Any], layout: Layout) -> None:
    assert widest_layout(make_spec(**resources), nodes(2, 2)) == layout


def test_no_number_has_more_gpus_than_a_step_has_rows() -> None:
    spec = make_spec({"effectiveBatchSize": 5}, maximumGpus=64, gpusPerNode=2)
    assert allowed_numbers(spec) == (2, 4)
    assert with_gpus(spec, 4).resources.gpus == 4


def test_a_pod_needs_enough_whole_gpus() -> None:
    (offer,) = nodes(2)
    assert unsuitable(offer, Layout(1, 2)) is None
    assert "requests 4" in (unsuitable(offer, Layout(2, 4)) or "")
    for sharing in ("TimeSlicing", "Mps", "Mig"):
        assert unsuitable(shared(sharing), Layout()) is None
        assert "whole GPUs" in (unsuitable(shared(sharing), Layout(1, 2)) or "")


def shared(sharing: Sharing) -> Offer:
    return Offer(L4, RESOURCE, 8, node="node", sharing=sharing)


def test_a_job_waits_until_all_of_its_pods_have_a_place() -> None:
    request = make_request({"effectiveBatchSize": 16}, resources={"gpus": 4, "gpusPerNode": 2})
    found = infeasible(decide_training(request, nodes(2, 1)))
    assert found.reason == "DoesNotFit"
    assert "2 pods with 2 GPUs each" in found.message
    assert "room for 1" in found.message
    assert feasible(decide_training(request, nodes(2, 3))).layout == Layout(2, 2)
    assert too_few(nodes(1), Layout()) is None


def test_nodes_with_too_few_gpus_are_no_place() -> None:
    request = make_request({"effectiveBatchSize": 16}, resources={"gpus": 2, "gpusPerNode": 2})
    found = feasible(decide_training(request, nodes(1, 2)))
    assert [offer.node for offer in found.offers] == ["node1"]
    assert "it has 1, and each pod" in infeasible(decide_training(request, nodes(1, 1))).message


def test_each_gpu_holds_a_replica_and_the_buckets_of_the_gradients() -> None:
    alone = feasible(decide_training(make_request({"effectiveBatchSize": 16}), nodes(4)))
    request = make_request({"effectiveBatchSize": 16}, resources={"gpus": 4})
    four = feasible(decide_training(request, nodes(4)))
    assert four.plan.ranks == 4
    assert four.plan.micro_batch_size * four.plan.gradient_accumulation == 4
    one = next(term.bytes for term in alone.estimate.terms if term.name == "layer weights")
    assert one == next(term.bytes for term in four.estimate.terms if term.name == "layer weights")
    assert "gradient buckets" in {term.name for term in four.estimate.terms}
    assert "gradient buckets" not in {term.name for term in alone.estimate.terms}
    (choice,) = [choice for choice in four.choices if choice.name == "gpusPerNode"]
    assert choice.value == "4"


def test_only_a_chosen_number_of_gpus_has_a_reason() -> None:
    assert layout_choices(make_spec(gpus=2, gpusPerNode=1).resources, Layout(2, 1)) == ()
    assert layout_choices(make_spec().resources, Layout()) == ()
    (choice,) = layout_choices(make_spec(gpus=4).resources, Layout(2, 2))
    assert "no node has all 4 GPUs" in choice.reason
