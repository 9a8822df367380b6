from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.quantities import GIB
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.cost.prices import CostSettings, parse_cost
from finetune_operator.sizing.cost.work import Rows, known_rows
from finetune_operator.sizing.decision import Feasible, Infeasible, decide_training
from finetune_operator.sizing.gpu_number import decide_number, possible_numbers
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.memory.terms import NotTracedError
from finetune_operator.sizing.request import SizingRequest

from tests.support.memory_traces import memory_trace
from tests.support.sizing_jobs import RESOURCE, feasible, infeasible, make_request

ROWS = known_rows(1000, 100, 2048, tokens=1_000_000)
FREE = CostSettings()
LARGE, SMALL = "NVIDIA A100 80GB", "NVIDIA L4"
TWELVE = {"effectiveBatchSize": 12}
LARGE_GPU = Gpu(LARGE, "Nvidia", 79 * GIB)
"""A replica of Mistral-7B needs 6 GiB, and a quarter of its weights 4.1 GiB."""


def gpu(gibibytes: float, name: str = SMALL) -> Gpu:
    return Gpu(name, "Nvidia", round(gibibytes * GIB))


def on(kind: Gpu, *counts: int, **others: Any) -> list[Offer]:
    """Nodes with so many of these GPUs."""
    return [
        Offer(kind, RESOURCE, count, node=f"{kind.product}-{kind.usable_bytes}-{index}", **others)
        for index, count in enumerate(counts)
    ]


def request(maximum: int, training: dict[str, Any] | None = None, **resources: Any) -> SizingRequest:
    return make_request(
        {"effectiveBatchSize": 16, **(training or {})}, resources={"maximumGpus": maximum, **resources}
    )


def decided(
    asked: SizingRequest, offers: list[Offer], rows: Rows | None = ROWS, cost: CostSettings = FREE
) -> tuple[int, Feasible | Infeasible]:
    """Decide; return the number of GPUs and the decision."""
    numbers = possible_numbers(asked, offers)
    chosen, decision = decide_number(asked, numbers, offers, decide_training, rows, cost)
    return chosen.spec.resources.gpus, decision


def reason(found: Feasible | Infeasible) -> str:
    (choice,) = [choice for choice in feasible(found).choices if choice.name == "gpus"]
    return choice.reason


def test_without_a_maximum_the_number_is_that_of_the_spec() -> None:
    asked = make_request({"effectiveBatchSize": 16}, resources={"gpus": 2})
    offers = on(gpu(24), 4)
    assert possible_numbers(asked, offers) == (2,)
    gpus, found = decided(asked, offers)
    assert gpus == 2
    assert "gpus" not in {choice.name for choice in feasible(found).choices}


@pytest.mark.parametrize(
    ("maximum", "counts", "resources", "training", "numbers"),
    [
        (1, [8], {}, {}, (1,)),
        (4, [8], {}, {}, (1, 2, 3, 4)),
        (8, [3], {}, {}, (1, 2, 3)),
        # Pods on several nodes need a workspace that the user has not asked for.
        (8, [1, 1, 1], {}, {}, (1,)),
        (8, [1, 1, 1], {"gpusPerNode": 1}, {}, (1, 2, 3)),
        (8, [3, 2], {"gpusPerNode": 2}, {}, (2, 4)),
        (7, [8], {"gpusPerNode": 3}, {}, (3, 6)),
        # Each GPU has a row of the step, and the rows need not divide by the GPUs.
        (8, [8], {}, {"effectiveBatchSize": 3}, (1, 2, 3)),
        (4, [8], {}, {"parallelism": "FullyShard"}, (2, 3, 4)),
        (4, [4, 4], {"gpusPerNode": 1}, {"parallelism": "FullyShard"}, (2, 3, 4)),
        # The first one is there although no node has it, so that it can be rejected.
        (4, [1], {}, {"parallelism": "FullyShard"}, (2,)),
        (8, [], {"gpusPerNode": 4}, {}, (4,)),
    ],
)
def test_the_numbers_are_those_that_the_nodes_have_a_place_for(
    maximum: int,
    counts: list[int],
    resources: dict[str, int],
    training: dict[str, Any],
    numbers: tuple[int, ...],
) -> None:
    asked = request(maximum, training, **resources)
    assert possible_numbers(asked, on(gpu(24), *counts)) == numbers


def test_gpus_that_are_shared_or_not_allowed_give_no_more_than_one() -> None:
    shared = on(gpu(24), 8, sharing="TimeSlicing", replicas=4)
    assert possible_numbers(request(4), shared) == (1,)
    elsewhere = request(4, nodeSelector={"pool": "a"})
    assert possible_numbers(elsewhere, on(gpu(24), 8)) == (1,)
    assert possible_numbers(elsewhere, on(gpu(24), 8, labels={"pool": "a"})) == (1, 2, 3, 4)


def test_one_gpu_is_the_cheapest_if_the_job_fits_it() -> None:
    gpus, found = decided(request(4), on(gpu(24), 4))
    assert gpus == 1
    assert feasible(found).layout.gpus == 1
    assert reason(found).startswith("the cheapest of at most 4 on which the job fits: ")
    assert reason(found).endswith(" GPU hours on NVIDIA L4")


def test_more_gpus_share_the_weights_if_fewer_are_too_small() -> None:
    gpus, found = decided(request(8, TWELVE), on(gpu(4.2), 4))
    assert gpus == 3
    assert feasible(found).layout.parallelism == "FullyShard"
    assert "2 GPUs would need " in reason(found)
    assert " each, but NVIDIA L4 has 4.20 GiB; the cheapest of at most 8 on which " in reason(found)
    assert "(4 GPUs: " in reason(found)


def test_more_gpus_may_be_cheaper_if_they_divide_the_rows_of_a_step() -> None:
    """Of 16 rows, one of 3 GPUs has 6, and the others wait for it."""
    gpus, found = decided(request(8), on(gpu(4.2), 4))
    assert gpus == 4
    assert "(3 GPUs: " in reason(found)
    assert "2 GPUs would need " in reason(found)


def test_the_fewest_gpus_count_while_the_time_is_not_known() -> None:
    for rows, kind in ((None, SMALL), (ROWS, "ACME X1")):
        gpus, found = decided(request(4), on(gpu(24, kind), 4), rows)
        assert gpus == 1
        assert reason(found) == "the fewest of at most 4 on which the job fits"


def test_a_family_without_a_formula_gets_the_fewest_gpus() -> None:
    traced = replace(request(4), shape=None, trace=MemoryTrace.model_validate(memory_trace(6, 2048)))
    gpus, found = decided(traced, on(gpu(60), 4))
    assert gpus == 1
    assert reason(found) == "the fewest of at most 4 on which the job fits"


def test_a_number_of_which_the_trace_tells_nothing_is_left_out() -> None:
    asked = request(3)

    def decide(each: SizingRequest, offers: Sequence[Offer], *, brief: bool) -> Feasible | Infeasible:
        if each.spec.resources.gpus < 3:
            raise NotTracedError("no such pass")
        return decide_training(each, offers, brief=brief)

    offers = on(gpu(24), 4)
    chosen, found = decide_number(asked, (1, 2, 3), offers, decide, ROWS, FREE)
    assert chosen.spec.resources.gpus == 3
    assert "the cheapest of at most 3" in reason(found)
    with pytest.raises(NotTracedError, match="no such pass"):
        decide_number(asked, (1, 2), offers, decide, ROWS, FREE)


def prices(large: float, small: float) -> CostSettings:
    entries = [{"product": LARGE, "perGpuHour": large}, {"product": SMALL, "perGpuHour": small}]
    return parse_cost({"currency": "EUR", "prices": entries})


def test_a_price_list_may_make_more_small_gpus_cheaper_than_a_large_one() -> None:
    offers = [*on(gpu(4.2), 4), *on(LARGE_GPU, 4)]
    gpus, found = decided(request(4), offers)
    assert (gpus, feasible(found).gpu.product) == (1, LARGE), "by GPU hours, the large one is cheaper"
    gpus, found = decided(request(4, TWELVE), offers, cost=prices(large=50, small=0.1))
    assert (gpus, feasible(found).gpu.product) == (3, SMALL)
    assert "EUR on NVIDIA L4 (" in reason(found)
    assert "1 GPU: " in reason(found)
    gpus, _ = decided(request(4), offers, cost=prices(large=1, small=1))
    assert gpus == 1


def test_several_gpus_run_on_none_of_those_of_which_one_would_do() -> None:
    """The price was that of the small ones. Three of the large ones would cost three times as much as needed."""
    offers = [*on(gpu(4.2), 4), *on(LARGE_GPU, 4)]
    _, found = decided(request(4), offers, cost=prices(large=50, small=0.1))
    assert {offer.gpu.product for offer in feasible(found).offers} == {SMALL}


def test_a_price_that_is_missing_for_one_product_decides_nothing() -> None:
    offers = [*on(gpu(4.2), 4), *on(LARGE_GPU, 1)]
    only_small = parse_cost({"currency": "EUR", "prices": [{"product": SMALL, "perGpuHour": 0.1}]})
    gpus, found = decided(request(4), offers, cost=only_small)
    assert gpus == 1
    assert "GPU hours" in reason(found)


def test_of_numbers_that_cost_the_same_the_smallest_counts() -> None:
    free = prices(large=0, small=0)
    gpus, found = decided(request(4), on(gpu(24), 4), cost=free)
    assert gpus == 1
    assert "0 EUR" in reason(found)


def test_a_fit_with_margin_comes_before_fewer_gpus_without_it() -> None:
    replica = infeasible(decided(request(1), on(gpu(3), 1))[1]).estimate
    between = (replica.device_bytes + replica.high_bytes) / 2 / GIB
    alone = feasible(decided(request(1), on(gpu(between), 4))[1])
    assert alone.borderline
    gpus, found = decided(request(4), on(gpu(between), 4))
    assert gpus > 1
    assert not feasible(found).borderline
    assert "would perhaps need" in reason(found)


@pytest.mark.parametrize("parallelism", ["DataParallel", "FullyShard"])
def test_a_given_parallelism_is_kept(parallelism: str) -> None:
    asked = request(4, {"parallelism": parallelism})
    gpus, found = decided(asked, on(gpu(24), 4))
    assert gpus == (1 if parallelism == "DataParallel" else 2)
    assert feasible(found).plan.parallelism == parallelism
    kept = decided(asked, on(gpu(4.2), 4))[1]
    assert isinstance(kept, Feasible) == (parallelism == "FullyShard")


def test_a_rejection_is_that_of_the_number_that_lacks_least() -> None:
    gpus, found = decided(request(2), on(gpu(4.2), 2))
    assert gpus == 2
    assert "must fit on each of 2 GPUs" in infeasible(found).message
    assert "The smallest GPU that fits the unchanged job is" in infeasible(found).message


def test_a_rejection_names_the_number_that_would_do_beyond_the_maximum() -> None:
    _, found = decided(request(2), on(gpu(4.2), 8))
    assert "With resources.gpus: 4 instead of maximumGpus: 2, GPUs share" in infeasible(found).message


def test_a_rejection_names_a_number_on_several_nodes_that_the_maximum_allows() -> None:
    """The message has the whole remedy, because such a job needs another workspace."""
    offers = on(gpu(4.2), 1, 1, 1, 1)
    gpus, found = decided(request(8), offers)
    assert gpus == 1
    assert "With resources.gpus: 4 instead of maximumGpus: 8" in infeasible(found).message
    gpus, found = decided(request(8, gpusPerNode=1), offers)
    assert gpus == 3
    assert (feasible(found).layout.nodes, feasible(found).layout.per_node) == (3, 1)


def test_a_job_without_any_gpu_is_told_so() -> None:
    gpus, found = decided(request(4), [])
    assert gpus == 1
    assert "found none" in infeasible(found).message
