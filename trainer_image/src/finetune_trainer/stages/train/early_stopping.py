"""Selection by the loss on held-out rows: when training ends early, and which step's adapter is published.

The measurements are part of the training's history, which is in every checkpoint. All decisions follow from them alone.
So a resumed run decides as an uninterrupted one. The rows are not those of the verdict: the smallest of several losses is
too small by chance, so rows that choose cannot judge.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from finetune_trainer.contract.run_spec import Training

_log = logging.getLogger(__name__)

_LOSS = "heldOutLoss"
BEST_ROWS = 100
"""Rows of a measurement if only the best step is asked for. Early stopping has the same default."""
SHARE = 4
"""If there are too few validation rows for both purposes, selection gets a quarter of them."""


@dataclass(frozen=True)
class Measurement:
    """The mean loss of the selection rows after an optimizer step, in nats per supervised token."""

    step: int
    loss: float


History = tuple[Measurement, ...]


@dataclass(frozen=True)
class SelectionRule:
    """When to measure, when to end, and what to keep. `patience` is None if training never ends early."""

    interval_steps: int
    maximum_rows: int
    keeps_best: bool
    patience: int | None = None
    minimum_improvement: float = 0.0

    def due(self, step: int, steps: int) -> bool:
        """Return whether to measure after `step` of `steps`. The last step may be the best one, too."""
        return step > 0 and (step % self.interval_steps == 0 or (self.keeps_best and step == steps))

    def ends(self, history: History) -> bool:
        """Return whether the last `patience` measurements brought no improvement that counts.

        A loss counts if it is below the best one before by more than `minimum_improvement`.
        """
        if self.patience is None:
            return False
        smallest, waited = math.inf, 0
        for measurement in history:
            if measurement.loss < smallest - self.minimum_improvement:
                smallest, waited = measurement.loss, 0
            else:
                waited += 1
        return waited >= self.patience

    def steps_to_keep(self, history: History) -> frozenset[int]:
        """Return the steps whose checkpoints must stay: the best one, and the one before it.

        Each new best step is saved at once. If its checkpoint is broken, the run goes on from an earlier one, whose best
        step is the one before.
        """
        if not self.keeps_best:
            return frozenset()
        smallest, steps = math.inf, []
        for measurement in history:
            if measurement.loss < smallest:
                smallest = measurement.loss
                steps.append(measurement.step)
        return frozenset(steps[-2:])


def selection_rule(training: Training) -> SelectionRule | None:
    """Return the rule of a run; None if the last step of a whole training is published."""
    stopping, keeps_best = training.early_stopping, training.checkpoint.keep == "Best"
    if stopping is not None:
        return SelectionRule(
            interval_steps=stopping.interval_steps,
            maximum_rows=stopping.maximum_rows,
            keeps_best=keeps_best,
            patience=stopping.patience,
            minimum_improvement=stopping.minimum_improvement,
        )
    return (
        SelectionRule(training.checkpoint.interval_steps, BEST_ROWS, keeps_best=True) if keeps_best else None
    )


def split_rows(available: int, for_verdict: int, rule: SelectionRule | None) -> tuple[int, int]:
    """Return how many validation rows the verdict and the selection get; no row serves both.

    The verdict has `for_verdict` rows at most and the first ones of the table, the selection has those after them. If the
    rows are too few for both, selection gets `SHARE` of them. Raises StageError (InvalidDataset) below 2 rows.
    """
    if rule is None:
        return min(available, for_verdict), 0
    if available < 2:
        raise StageError(
            Reason.INVALID_DATASET,
            f"training.earlyStopping and training.checkpoint.keep: Best need at least 2 validation rows, found "
            f"{available}; add rows, or train without them",
        )
    spare = max(available - for_verdict, available // SHARE, 1)
    selected = min(rule.maximum_rows, spare)
    return min(for_verdict, available - selected), selected


def history_of(entries: Iterable[Mapping[str, Any]]) -> History:
    """Return the measurements in a training's log history, in the order of their steps."""
    found = {int(entry["step"]): float(entry[_LOSS]) for entry in entries if _LOSS in entry}
    return tuple(Measurement(step, found[step]) for step in sorted(found))


def best_of(history: History) -> Measurement | None:
    """Return the measurement with the smallest loss, the first of equal ones; None without a finite one."""
    finite = [measurement for measurement in history if math.isfinite(measurement.loss)]
    return min(finite, key=lambda measurement: (measurement.loss, measurement.step), default=None)


class SelectionCallback(TrainerCallback):
    """Measures when the rule says so, and ends training or asks for a checkpoint.

    `measure` returns the loss of the model as it is, or None if it was abandoned because the run must stop. Then the step
    is measured before the run continues from its checkpoint.
    """

    def __init__(self, rule: SelectionRule, measure: Callable[[], float | None]) -> None:
        self.rule = rule
        self._measure = measure
        self._known: dict[int, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Add what was measured before the state was loaded from its checkpoint."""
        if state.global_step in self._known:
            self.measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Ask for a measurement if it is due."""
        if self.rule.due(state.global_step, state.max_steps):
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Measure the step, and decide by the history."""
        if not self.measure(state):
            return
        history = history_of(state.log_history)
        if state.global_step in self.rule.steps_to_keep(history):
            control.should_save = True
        if self.rule.ends(history):
            _log.info(
                "training ends at step %d: the loss on held-out rows improves no more", state.global_step
            )
            control.should_save = True
            control.should_training_stop = True

    def measure(self, state: Any) -> bool:
        """Measure the current step, unless its loss is known; return whether it is known now."""
        step = state.global_step
        if any(measurement.step == step for measurement in history_of(state.log_history)):
            return True
        loss = self._known.get(step)
        if loss is None:
            loss = self._measure()
        if loss is None:
            return False
        self._known[step] = loss
        state.log_history.append({"step": step, _LOSS: loss})
        _log.info("step %d: loss on held-out rows %.4f nats per token", step, loss)
        return True
