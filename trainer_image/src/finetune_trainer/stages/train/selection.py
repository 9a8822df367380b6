"""Applies the rule of early_stopping.py to a training: measures the model, goes on after a resume, loads the best step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerState

from finetune_trainer.contract.train_result import SelectionResult
from finetune_trainer.evaluation.compare import mean_loss
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.model.output_head import is_sharded
from finetune_trainer.stages.train.adapter import load_adapter_weights
from finetune_trainer.stages.train.checkpoint_files import STATE
from finetune_trainer.stages.train.checkpoints import whole_checkpoint
from finetune_trainer.stages.train.early_stopping import SelectionCallback, best_of, history_of
from finetune_trainer.stages.train.fit import measure_within
from finetune_trainer.stages.train.ranks.group import ALONE
from finetune_trainer.stages.train.ranks.losses import common_budgets, pacing, shared_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from finetune_trainer.data.masking.example import Example
    from finetune_trainer.evaluation.compare import RowLoss
    from finetune_trainer.stages.train.early_stopping import SelectionRule
    from finetune_trainer.stages.train.loop import AdapterTrainer
    from finetune_trainer.stages.train.origin import Origin
    from finetune_trainer.stages.train.ranks.group import Ranks
    from finetune_trainer.stages.train.stop_request import StopRequest
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)


class _AbandonedError(Exception):
    """The measurement ends because the run must stop."""


class Selection:
    """The selection of one run: its rule, its rows, and the model that it measures.

    `budgets` are the tokens of a batch to try one after another, as in the evaluation.
    """

    def __init__(
        self,
        rule: SelectionRule,
        model: Any,
        examples: Sequence[Example],
        budgets: Sequence[int],
        stop: StopRequest,
        ranks: Ranks = ALONE,
    ) -> None:
        self.rule = rule
        self.callback = SelectionCallback(rule, self._loss)
        self.report: Callable[[float], None] | None = None
        """Called with each measured loss."""
        self._model = model
        self._examples = examples
        self._budgets = budgets
        self._stop = stop
        self._ranks = ranks

    def join(self, trainer: AdapterTrainer, progress: Reporter) -> None:
        """Let `trainer` ask for measurements, and `progress` show them."""
        self.report = lambda loss: progress.measure(evaluation_loss=loss)
        trainer.selection = self.rule
        trainer.add_callback(self.callback)

    def ended(self, state: TrainerState) -> bool:
        """Return whether the losses in `state` end the training."""
        return self.rule.ends(history_of(state.log_history))

    def restored(self, folder: Path) -> TrainerState:
        """Load the adapter and the state of the checkpoint in `folder`, and measure it if that was abandoned.

        Raises Terminated if the measurement is interrupted again.
        """
        load_adapter_weights(self._model, folder)
        state: TrainerState = TrainerState.load_from_json(str(folder / STATE))
        if self.rule.due(state.global_step, state.max_steps) and not self.callback.measure(state):
            self._stop.check()
        return state

    def load_published(self, trainer: AdapterTrainer, origin: Origin) -> int:
        """Load the adapter to publish into the model, and return its step: the best one if that is kept, else the last."""
        best = best_of(history_of(trainer.state.log_history))
        last = trainer.state.global_step
        if not self.rule.keeps_best or best is None or best.step == last:
            return last
        step = best.step
        # The first rank has written the checkpoint, and alone knows that this has ended.
        folder = self._ranks.from_first(lambda: whole_checkpoint(trainer.checkpoints, step, origin))
        if folder is None:
            _log.error("the adapter of step %d is published, because that of step %d is lost", last, step)
            return last
        _log.info("the adapter of step %d is published: its loss on held-out rows is the smallest", step)
        load_adapter_weights(self._model, folder)
        return step

    def result(self, state: TrainerState, steps: int, published: int) -> SelectionResult:
        """Return the result of a training of `steps` planned steps, whose step `published` is published."""
        history = history_of(state.log_history)
        best = best_of(history)
        return SelectionResult(
            rows=len(self._examples),
            measurements=len(history),
            planned_steps=steps,
            published_step=published,
            stopped_early=state.global_step < steps,
            **({} if best is None else {"best_step": best.step, "best_loss": best.loss}),
        )

    def _loss(self) -> float | None:
        """Return the loss of the model as it is in nats per token; None if the run must stop.

        The model computes as in the evaluation: without dropout and noise. No random number is drawn.
        """
        budgets = common_budgets(self._model, self._budgets)
        sharded = is_sharded(self._model)

        def check(_done: int, _total: int) -> None:
            # Ranks that share weights end a measurement together.
            if self._stop.received and not sharded:
                raise _AbandonedError

        def measure(examples: Sequence[Example]) -> list[RowLoss] | None:
            try:
                return measure_within(
                    lambda tokens: row_losses(self._model, examples, tokens, check), budgets
                )
            except _AbandonedError:
                return None

        was_training = self._model.training
        self._model.eval()
        try:
            losses = shared_losses(
                self._ranks, self._examples, measure, pacing(self._model, self._ranks, budgets[0])
            )
        finally:
            self._model.train(was_training)
        if losses is None:
            return None
        loss = mean_loss(losses)
        if self.report is not None:
            self.report(loss)
        return loss
