from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter

STATE = SimpleNamespace(global_step=3, max_steps=10)


def control() -> Any:
    return SimpleNamespace(should_save=False, should_training_stop=False)


def test_a_requested_stop_saves_at_the_end_of_the_step() -> None:
    stop = StopRequest()
    callback = ProgressCallback(NullReporter(), stop)
    decisions = control()
    callback.on_step_end(None, STATE, decisions)
    assert not decisions.should_training_stop
    stop.received = True
    callback.on_step_end(None, STATE, decisions)
    assert (decisions.should_save, decisions.should_training_stop) == (True, True)


@pytest.mark.parametrize("logs", [{"loss": float("nan")}, {"loss": 1.0, "grad_norm": float("inf")}])
def test_a_loss_or_gradient_that_is_not_finite_names_its_step(logs: dict[str, float]) -> None:
    callback = ProgressCallback(NullReporter(), StopRequest())
    with pytest.raises(StageError, match="step 3 of 10") as caught:
        callback.on_log(None, STATE, control(), logs)
    assert caught.value.reason is Reason.NON_FINITE_LOSS


def test_logs_without_a_loss_are_ignored() -> None:
    callback = ProgressCallback(NullReporter(), StopRequest())
    callback.on_log(None, STATE, control(), {"train_runtime": 1.0})
    callback.on_log(None, STATE, control(), None)
    assert callback.losses == []
    assert callback.tokens_per_second is None
