"""How the rows of a step share passes: packs, groups, and which of them a run gets."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.train.batching import (
    MEMBER,
    Batching,
    BatchingCallback,
    batching_result,
    begun_kind,
    choose,
    groups,
    packs,
)


def _lengths(seed: int, count: int, longest: int) -> list[int]:
    chosen = random.Random(seed)  # noqa: S311 -- test data
    return [min(longest, 1 + int(chosen.expovariate(4 / longest))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_packs_hold_every_row_once_and_are_no_more_than_the_micro_batches(
    seed: int, micro_batch: int
) -> None:
    lengths = _lengths(seed, 32, 100)
    budget = micro_batch * max(lengths)
    found = packs(lengths, budget)
    assert sorted(row for pack in found for row in pack) == list(range(32))
    assert max(sum(lengths[row] for row in pack) for pack in found) <= budget
    assert len(found) <= 32 / micro_batch
    assert found == packs(lengths, budget)


def test_a_row_goes_where_it_leaves_the_least_room() -> None:
    assert packs([4, 9, 6, 1, 10], 10) == [[4], [1, 3], [2, 0]]


def test_equally_long_rows_keep_their_order() -> None:
    assert packs([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_every_row_once_and_pad_no_more_than_another_pass_costs(seed: int) -> None:
    lengths = _lengths(seed, 64, 4000)
    budget = 4 * max(lengths)
    found = groups(lengths, budget)
    assert sorted(row for group in found for row in group) == list(range(64))
    for group in found:
        sizes = [lengths[row] for row in group]
        assert max(sizes) * len(sizes) <= budget
        assert max(sizes) * len(sizes) - sum(sizes) <= 512


def test_short_rows_are_one_group_if_another_pass_would_cost_more() -> None:
    assert groups([3, 90, 40, 80], 400) == [[1, 3, 2, 0]]
    assert groups([3, 90, 40, 80], 400, cost=50) == [[1, 3], [2, 0]]


def test_rows_as_they_are_drawn_make_micro_batches_of_one_size() -> None:
    """A run that an older trainer began continues with exactly these."""
    batching = Batching("AsDrawn", 20, 2)
    assert batching.passes([3, 9, 10, 1, 2]) == [[0, 1], [2, 3], [4]]
    assert batching.padded([3, 9]) == 18
    assert Batching("Packed", 20, 2).padded([3, 9]) == 12


@pytest.fixture
def training(run_document: dict[str, Any], make_run: Callable[..., RunSpec]) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        return make_run(training={**run_document["training"], "microBatchSize": 2, **changes}).training

    return make


def test_rows_are_packed_if_nothing_is_against_it(training: Callable[..., Any]) -> None:
    assert choose(training(), 30, None, None) == Batching("Packed", 60, 2)
    assert choose(training(), 30, "Packed", None).kind == "Packed"


@pytest.mark.parametrize(
    ("settings", "begun", "obstacle", "kind", "reason"),
    [
        ({"packing": "Never"}, None, None, "Grouped", "training.packing is Never"),
        ({"neftuneNoiseAlpha": 5}, None, None, "Grouped", "neftuneNoiseAlpha"),
        ({}, None, "a convolution", "Grouped", "a convolution"),
        ({}, "Packed", "a convolution", "Grouped", "a convolution"),
        ({}, "Grouped", None, "Grouped", "continues as it began"),
        ({}, "AsDrawn", None, "AsDrawn", "did not pack"),
        ({"packing": "Never"}, "AsDrawn", "a convolution", "AsDrawn", "did not pack"),
    ],
)
def test_the_reason_says_why_rows_are_not_packed(
    training: Callable[..., Any],
    settings: dict[str, Any],
    begun: Any,
    obstacle: str | None,
    kind: str,
    reason: str,
) -> None:
    found = choose(training(**settings), 30, begun, obstacle)
    assert found.kind == kind
    assert found.reason is not None
    assert reason in found.reason


def test_a_checkpoint_names_the_kind_and_one_of_an_older_trainer_means_rows_as_drawn() -> None:
    state: Any = SimpleNamespace(stateful_callbacks={})
    assert begun_kind(state) == "AsDrawn"
    BatchingCallback(Batching("Grouped", 20, 2)).on_train_begin(None, state, None)
    assert state.stateful_callbacks == {MEMBER: {"kind": "Grouped"}}
    assert begun_kind(state) == "Grouped"


def test_the_result_has_the_share_of_tokens_that_are_no_padding() -> None:
    """Steps of an older trainer have no figures, and other entries of the history have none either."""
    history = [
        {"loss": 1.0},
        {"loss": 1.0, "tokens": 30, "computedTokens": 40},
        {"loss": 1.0, "tokens": 60, "computedTokens": 60},
        {"train_runtime": 3.0},
    ]
    found = batching_result(Batching("Grouped", 80, 2, "why"), history)
    assert found.document() == {"kind": "Grouped", "budgetTokens": 80, "realTokens": 0.9, "reason": "why"}
    assert batching_result(Batching("Packed", 80, 2), []).document() == {"kind": "Packed", "budgetTokens": 80}
