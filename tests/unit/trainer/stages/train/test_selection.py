"""Early stopping and the best step, on a tiny real model: what is decided, and that interruptions change nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.train_result import SelectionResult, TrainResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.compare import mean_loss
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.stages.train import selection as selection_module
from finetune_trainer.stages.train.dataset import open_table
from finetune_trainer.stages.train.stage import _load, train
from finetune_trainer.stages.train.unread import HostCopy
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from jsonschema import Draft202012Validator
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from tests.support.repository import ROOT
from tests.support.workspaces import run_spec

# Each test trains, some of them several times.
pytestmark = pytest.mark.slow

STEPS = 12
OVERFITTING: dict[str, Any] = {
    "maximumSteps": STEPS,
    "learningRate": 0.02,
    "schedule": {"type": "Constant", "warmupRatio": 0},
}
"""At this rate the loss on held-out rows falls and then rises."""
STOPPING = {"patience": 2, "intervalSteps": 1, "minimumImprovement": 0, "maximumRows": 2}


class StopAt(NullReporter):
    """Sends SIGTERM to this process when a step is reported."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step
        self.reported = 0

    def update(self, activity: str, step: int, total: int | None, **more: Any) -> None:
        super().update(activity, step, total, **more)
        if activity != "Training" or more.get("loss") is None:
            return
        self.reported = step
        if step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


def run(workspace: Path, progress: NullReporter | None = None, **training: Any) -> TrainResult:
    settings = {**OVERFITTING, **training}
    return train(run_spec(workspace, workspace / "out", **settings), progress or NullReporter())


def copied(prepared: Path, folder: Path) -> Path:
    shutil.copytree(prepared / "workspace", folder)
    return folder


def chosen(result: TrainResult) -> SelectionResult:
    assert result.selection is not None
    return result.selection


def adapter(workspace: Path) -> bytes:
    return (WorkspaceLayout(workspace).adapter / "adapter_model.safetensors").read_bytes()


def loss_of_published(workspace: Path) -> float:
    """The loss of the published adapter on the rows that selected it: the last two of the table."""
    layout = WorkspaceLayout(workspace)
    loaded = _load(run_spec(workspace, workspace / "out"), layout)
    weights = load_file(layout.adapter / "adapter_model.safetensors")
    set_peft_model_state_dict(loaded.adapted, weights)
    rows = open_table(layout.validation_table).first(8)[6:]
    return mean_loss(row_losses(loaded.adapted.eval(), rows, 1000, lambda _done, _total: None))


def test_training_ends_when_the_loss_rises_and_the_best_step_is_published(
    prepared_llama: Path, tmp_path: Path
) -> None:
    workspace = copied(prepared_llama, tmp_path / "best")
    result = run(workspace, earlyStopping=STOPPING, checkpoint={"intervalSteps": 100, "keep": "Best"})
    found = chosen(result)
    assert found.stopped_early
    assert found.best_step is not None
    assert result.steps == found.measurements == found.best_step + 2 < STEPS
    assert found.published_step == found.best_step
    assert (found.rows, result.evaluation.rows) == (2, 6), "no row selects and judges"
    assert loss_of_published(workspace) == pytest.approx(found.best_loss, abs=1e-6)
    schema = json.loads((ROOT / "contract/result.schema.json").read_text("utf-8"))
    Draft202012Validator({**schema, "$ref": "#/$defs/train", "type": "object", "required": []}).validate(
        result.document()
    )


def test_the_last_step_is_published_if_only_the_end_is_asked_for(
    prepared_llama: Path, tmp_path: Path
) -> None:
    workspace = copied(prepared_llama, tmp_path / "last")
    result = run(workspace, earlyStopping=STOPPING)
    found = chosen(result)
    assert found.stopped_early
    assert found.published_step == result.steps == (found.best_step or 0) + 2
    assert loss_of_published(workspace) > (found.best_loss or 0)


def test_a_training_that_improves_goes_on_to_its_last_step(prepared_llama: Path, tmp_path: Path) -> None:
    result = run(
        copied(prepared_llama, tmp_path / "whole"),
        learningRate=0.005,
        maximumSteps=6,
        earlyStopping={**STOPPING, "intervalSteps": 2},
    )
    found = chosen(result)
    assert (result.steps, found.measurements, found.stopped_early) == (6, 3, False)


def test_nothing_is_measured_and_all_rows_judge_without_these_settings(
    prepared_llama: Path, tmp_path: Path
) -> None:
    result = run(copied(prepared_llama, tmp_path / "plain"), maximumSteps=1)
    assert result.selection is None
    assert result.evaluation.rows == 8
    assert "selection" not in result.document()


def interrupted(workspace: Path, step: int, **training: Any) -> None:
    with pytest.raises(StageError) as caught:
        run(workspace, StopAt(step), **training)
    assert caught.value.reason == Reason.INTERRUPTED


BOTH: dict[str, Any] = {
    "earlyStopping": STOPPING,
    "checkpoint": {"intervalSteps": 100, "keep": "Best"},
}


@pytest.fixture(scope="module")
def whole(prepared_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """The selection and the adapter of a run without interruptions."""
    workspace = copied(prepared_llama, tmp_path_factory.mktemp("whole") / "run")
    found = chosen(run(workspace, **BOTH)).document()
    assert found["stoppedEarly"]
    assert found["measurements"] > 3
    return found, adapter(workspace)


def test_a_run_that_is_stopped_at_every_second_step_decides_the_same(
    prepared_llama: Path, tmp_path: Path, whole: tuple[dict[str, Any], bytes]
) -> None:
    workspace = copied(prepared_llama, tmp_path / "run")
    ends = whole[0]["measurements"]
    for step in range(1, ends, 2):
        interrupted(workspace, step, **BOTH)
    assert chosen(run(workspace, **BOTH)).document() == whole[0]
    assert adapter(workspace) == whole[1]


@pytest.mark.parametrize("before_the_end", [0, 1])
def test_a_stop_within_a_measurement_leaves_it_to_the_resumed_run(
    prepared_llama: Path,
    tmp_path: Path,
    whole: tuple[dict[str, Any], bytes],
    monkeypatch: pytest.MonkeyPatch,
    before_the_end: int,
) -> None:
    """It decides as if it had not been interrupted, even if that measurement ends the training."""
    measure: Callable[..., Any] = row_losses
    ends, calls = whole[0]["measurements"], []

    def stop_within(model: Any, examples: Any, tokens: int, progress: Callable[[int, int], None]) -> Any:
        calls.append(len(examples))
        if len(calls) == ends - before_the_end:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(model, examples, tokens, progress)

    monkeypatch.setattr(selection_module, "row_losses", stop_within)
    workspace = copied(prepared_llama, tmp_path / "run")
    with pytest.raises(StageError) as caught:
        run(workspace, **BOTH)
    assert caught.value.reason == Reason.INTERRUPTED
    assert chosen(run(workspace, **BOTH)).document() == whole[0]
    assert adapter(workspace) == whole[1]
    assert len(calls) == ends + 1, "only the abandoned measurement is repeated"


def test_a_lost_best_checkpoint_publishes_the_last_step_and_says_so(
    prepared_llama: Path,
    tmp_path: Path,
    whole: tuple[dict[str, Any], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    workspace = copied(prepared_llama, tmp_path / "run")
    best, ends = whole[0]["bestStep"], whole[0]["measurements"]
    interrupted(workspace, ends - 1, **BOTH)
    (WorkspaceLayout(workspace).checkpoints / f"checkpoint-{best}" / "adapter_model.safetensors").unlink()
    found = chosen(run(workspace, **BOTH))
    assert (found.best_step, found.published_step) == (best, ends)
    assert f"because that of step {best} is lost" in caplog.text


def test_every_step_is_reported_before_a_measurement(
    prepared_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even on a device that is behind: a measurement of weights that are not finite would be worth nothing."""
    measured: list[int] = []
    progress = StopAt(-1)
    measure: Callable[..., Any] = row_losses

    def observed(*arguments: Any) -> Any:
        measured.append(progress.reported)
        return measure(*arguments)

    monkeypatch.setattr(HostCopy, "arrived", property(lambda _copy: False))
    monkeypatch.setattr(selection_module, "row_losses", observed)
    workspace = copied(prepared_llama, tmp_path / "run")
    run(workspace, progress, maximumSteps=5, earlyStopping={**STOPPING, "intervalSteps": 2, "patience": 9})
    assert measured == [2, 4]


def test_a_device_that_is_behind_decides_the_same(
    prepared_llama: Path,
    tmp_path: Path,
    whole: tuple[dict[str, Any], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HostCopy, "arrived", property(lambda _copy: False))
    workspace = copied(prepared_llama, tmp_path / "run")
    assert chosen(run(workspace, **BOTH)).document() == whole[0]
    assert adapter(workspace) == whole[1]
