from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.ranks.usage import RankUsage
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter

STATE = SimpleNamespace(global_step=4, max_steps=10)
"""The state of a training that is a step ahead of its reports."""


@pytest.mark.parametrize(
    "logs", [{"loss": float("nan"), "step": 3}, {"loss": 1.0, "grad_norm": float("inf"), "step": 3}]
)
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


class _Reported(NullReporter):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, Any]] = []
        self.numbers: dict[str, Any] = {}

    def update(self, activity: str, step: int, total: int | None, **more: Any) -> None:
        super().update(activity, step, total, **more)
        self.steps.append((step, more.get("tokens_per_second")))

    def measure(self, **numbers: Any) -> None:
        self.numbers |= numbers


def test_progress_names_the_reported_step_and_counts_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean speed is that until the last report, whatever the process does afterwards."""
    clock = [100.0]
    monkeypatch.setattr("finetune_trainer.stages.train.progress_callback.time.monotonic", lambda: clock[0])
    reported = _Reported()
    callback = ProgressCallback(reported, StopRequest())
    callback.on_train_begin(None, STATE, None)
    for step, tokens in ((3, 50), (4, 150)):
        clock[0] += 10
        callback.on_log(None, STATE, None, {"loss": 1.0, "step": step, "tokens": tokens})
    clock[0] += 1000
    assert reported.steps == [(4, None), (3, 5.0), (4, 10.0)]
    assert callback.tokens_per_second == 10.0
    assert callback.losses == [1.0, 1.0]


def test_measured_steps_have_their_time_without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("finetune_trainer.stages.train.progress_callback.time.monotonic", lambda: clock[0])
    reported = _Reported()
    callback = ProgressCallback(reported, StopRequest())
    clock[0] += 60
    callback.on_train_begin(None, STATE, None)
    begun = reported.numbers["checkpoint_time"]
    for step in (3, 4):
        clock[0] += 10
        callback.on_log(None, STATE, None, {"loss": 1.0, "step": step, "tokens": 50})
        with callback.clock.pause():
            clock[0] += 500
    assert reported.numbers == {
        "steps": 2,
        "seconds": 20.0,
        "tokens": 100,
        "step_seconds": 10.0,
        "checkpoint_time": begun,
    }


def test_what_each_rank_takes_is_reported_if_there_are_several() -> None:
    reported = _Reported()
    callback = ProgressCallback(reported, StopRequest())
    trainer: Any = SimpleNamespace(gradients=SimpleNamespace(rank_usage=()), checkpoint_time=None)
    callback.trainer = trainer
    callback.on_log(None, STATE, None, {"loss": 1.0, "step": 3, "tokens": 5})
    assert not any(name.startswith("rank") for name in reported.numbers)
    trainer.gradients.rank_usage = (RankUsage(0.5, 0, 7), RankUsage(0.25, 0, 8))
    callback.on_log(None, STATE, None, {"loss": 1.0, "step": 4, "tokens": 5})
    assert reported.numbers["rank_seconds"] == (0.5, 0.25)
    assert reported.numbers["rank_host_bytes"] == (7, 8)
    assert "rank_device_bytes" not in reported.numbers
    trainer.gradients.rank_usage = (RankUsage(0.5, 0, 7), RankUsage(0.25, 9, 8))
    callback.on_log(None, STATE, None, {"loss": 1.0, "step": 5, "tokens": 5})
    assert reported.numbers["rank_device_bytes"] == (0, 9)
