from __future__ import annotations

import json
import math
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import Training
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.early_stopping import (
    BEST_ROWS,
    Measurement,
    SelectionCallback,
    SelectionRule,
    best_of,
    history_of,
    selection_rule,
    split_rows,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState

from tests.support.repository import ROOT

RULE = SelectionRule(interval_steps=2, maximum_rows=10, keeps_best=True, patience=2)
FIXTURE = json.loads((ROOT / "contract/fixtures/run.selecting.json").read_text("utf-8"))["training"]


def history(*losses: float) -> tuple[Measurement, ...]:
    return tuple(Measurement(2 * (place + 1), loss) for place, loss in enumerate(losses))


def test_a_run_without_these_settings_has_no_rule() -> None:
    plain = {name: value for name, value in FIXTURE.items() if name != "earlyStopping"}
    plain["checkpoint"] = {"intervalSteps": 100}
    assert selection_rule(Training.model_validate(plain)) is None


def test_the_rule_has_the_settings_of_the_run() -> None:
    found = selection_rule(Training.model_validate(FIXTURE))
    assert found == SelectionRule(50, 100, keeps_best=True, patience=2, minimum_improvement=0.01)
    alone = {name: value for name, value in FIXTURE.items() if name != "earlyStopping"}
    assert selection_rule(Training.model_validate(alone)) == SelectionRule(100, BEST_ROWS, keeps_best=True)


def test_every_interval_is_measured_and_the_last_step_if_it_may_be_the_best() -> None:
    assert [step for step in range(8) if RULE.due(step, 7)] == [2, 4, 6, 7]
    last = SelectionRule(2, 10, keeps_best=False, patience=1)
    assert [step for step in range(8) if last.due(step, 7)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("losses", "minimum", "ends"),
    [
        ((), 0.0, False),
        ((3.0, 2.0, 1.0), 0.0, False),
        ((3.0, 3.1), 0.0, False),
        ((3.0, 3.1, 3.2), 0.0, True),
        ((3.0, 3.0, 3.0), 0.0, True),
        ((3.0, 3.1, 2.9), 0.0, False),
        ((3.0, 3.1, 2.9, 3.0), 0.0, False),
        ((3.0, 2.95, 2.91), 0.1, True),
        ((3.0, 2.95, 2.89), 0.1, False),
        ((math.nan, math.nan), 0.0, True),
    ],
)
def test_training_ends_after_the_patience_without_an_improvement_that_counts(
    losses: tuple[float, ...], minimum: float, *, ends: bool
) -> None:
    rule = SelectionRule(2, 10, keeps_best=True, patience=2, minimum_improvement=minimum)
    assert rule.ends(history(*losses)) is ends
    assert not SelectionRule(2, 10, keeps_best=True).ends(history(*losses)), (
        "without a patience it never ends"
    )


def test_the_best_is_the_first_of_the_smallest_finite_losses() -> None:
    assert best_of(()) is best_of(history(math.nan, math.inf)) is None
    assert best_of(history(3.0, math.nan, 2.0, 2.0, 4.0)) == Measurement(6, 2.0)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.data())
def test_the_kept_checkpoints_hold_the_best_step_of_the_two_newest(
    losses: list[float], data: st.DataObject
) -> None:
    """A new best step is saved at once, other checkpoints are saved at any step; the newest one may be broken."""
    saved: list[int] = []
    for count in range(1, len(losses) + 1):
        seen = history(*losses[:count])
        keep = RULE.steps_to_keep(seen)
        step = seen[-1].step
        if step in keep or data.draw(st.booleans()):
            saved = [*[old for old in saved if old in keep or old in saved[-1:]], step]
            for newest in saved[-2:]:
                best = best_of(tuple(item for item in seen if item.step <= newest))
                assert best is not None
                assert best.step in saved


def test_nothing_is_kept_for_a_run_that_publishes_the_last_step() -> None:
    assert SelectionRule(2, 10, keeps_best=False, patience=2).steps_to_keep(history(3.0, 2.0)) == frozenset()


@pytest.mark.parametrize(
    ("available", "verdict", "selection"),
    [(1000, 200, 100), (300, 200, 100), (250, 188, 62), (40, 30, 10), (3, 2, 1), (2, 1, 1)],
)
def test_no_row_is_used_to_select_and_to_judge(available: int, verdict: int, selection: int) -> None:
    rule = SelectionRule(2, 100, keeps_best=True)
    assert split_rows(available, 200, rule) == (verdict, selection)
    assert verdict + selection <= available


def test_all_rows_judge_if_none_selects() -> None:
    assert split_rows(40, 200, None) == (40, 0)
    assert split_rows(1000, 200, None) == (200, 0)


def test_a_single_row_cannot_serve_both() -> None:
    with pytest.raises(StageError, match="at least 2 validation rows, found 1") as caught:
        split_rows(1, 200, RULE)
    assert caught.value.reason == Reason.INVALID_DATASET


def test_the_history_is_read_from_the_state_in_a_checkpoint() -> None:
    entries = [{"step": 4, "heldOutLoss": 2.0}, {"step": 4, "loss": 9.0}, {"step": 2, "heldOutLoss": 3.0}]
    assert history_of(json.loads(json.dumps(entries))) == history(3.0, 2.0)


class Losses:
    """Gives out losses in order; None means that the measurement was abandoned."""

    def __init__(self, *losses: float | None) -> None:
        self.left = list(losses)

    def __call__(self) -> float | None:
        return self.left.pop(0)


def step_end(callback: SelectionCallback, state: TrainerState, step: int) -> TrainerControl:
    control = TrainerControl()
    state.global_step, state.max_steps = step, 100
    callback.on_step_end(None, state, control)
    if control.should_evaluate:
        callback.on_evaluate(None, state, control)
    return control


def test_a_better_step_is_saved_and_the_end_stops_training() -> None:
    state, losses = TrainerState(), Losses(3.0, 2.0, 2.5, 2.1)
    callback = SelectionCallback(RULE, losses)
    found: list[Any] = [step_end(callback, state, step) for step in range(1, 9)]
    assert [bool(control.should_evaluate) for control in found] == [False, True] * 4
    assert [bool(control.should_save) for control in found[:6]] == [False, True, False, True, False, False]
    assert [bool(control.should_training_stop) for control in found] == [False] * 7 + [True]
    assert found[-1].should_save, "the end is saved, so a kill during the evaluation costs nothing"
    assert losses.left == []
    assert history_of(state.log_history) == history(3.0, 2.0, 2.5, 2.1)


def test_an_abandoned_measurement_decides_nothing_and_is_made_up_for_once() -> None:
    state = TrainerState()
    callback = SelectionCallback(RULE, Losses(None, 3.0))
    control = step_end(callback, state, 2)
    assert not control.should_save
    assert history_of(state.log_history) == ()
    assert callback.measure(state)
    assert callback.measure(state), "a known loss is not measured again"
    assert history_of(state.log_history) == history(3.0)
