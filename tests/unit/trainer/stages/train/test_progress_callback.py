from __future__ import annotations

from types import SimpleNamespace

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter

STATE = SimpleNamespace(global_step=3, max_steps=10)


@pytest.mark.parametrize("logs", [{"loss": float("nan")}, {"loss": 1.0, "grad_norm": float("inf")}])
def test_a_loss_or_gradient_that_is_not_finite_names_its_step(logs: dict[str, float]) -> None:
    callback = ProgressCallback(NullReporter(), StopRequest())
    with pytest.raises(StageError, match="step 3 of 10") as caught:
        callback.on_log(None, STATE, None, logs)
    assert caught.value.reason is Reason.NON_FINITE_LOSS


def test_logs_without_a_loss_are_ignored() -> None:
    callback = ProgressCallback(NullReporter(), StopRequest())
    callback.on_log(None, STATE, None, {"train_runtime": 1.0})
    callback.on_log(None, STATE, None, None)
    assert callback.losses == []
    assert callback.tokens_per_second is None
