"""TRAIN on a device that is too small for its plan: the next rung goes on, with the same result."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.contract.bounds import within_contract
from finetune_trainer.contract.exit_codes import ExitCode, exit_code
from finetune_trainer.contract.result import StageResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train import stage
from finetune_trainer.stages.train.batching import choose
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.fit import DoesNotFitError, fit, fitting, measure_within
from finetune_trainer.stages.train.ladder import Ladder, this_device
from finetune_trainer.stages.train.memory import Reading
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.ranks.group import RankDoesNotFitError, Ranks
from finetune_trainer.stages.train.rungs import rung_of, runs_by_rung
from finetune_trainer.stages.train.stage import _build_trainer, _load, train
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file

from tests.support.small_gpu import MESSAGE, SmallGpu, Watch, full_in
from tests.support.workspaces import run_spec

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.contract.train_result import TrainResult

# Each test trains, some of them several times.
pytestmark = pytest.mark.slow

_FIRST = {"microBatchSize": 4, "gradientCheckpointing": False}
_SECOND = {"microBatchSize": 2, "gradientCheckpointing": False}
_LAST = {"microBatchSize": 1, "gradientCheckpointing": True}
_STEPS = 8


def _run(root: Path, **training: Any) -> RunSpec:
    """Return a run of 8 steps of 4 rows: 6 steps are an epoch, and every third step is saved."""
    settings = {"maximumSteps": _STEPS, "ladder": [_SECOND, _LAST], "checkpoint": {"intervalSteps": 3}}
    return run_spec(root, root / "output", **{**settings, **_FIRST, **training})


def _adapter(root: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(WorkspaceLayout(root).adapter / "adapter_model.safetensors"))


@pytest.fixture(scope="module")
def whole(
    prepared_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    """Return result and adapter of a run whose first rung fits."""
    root = tmp_path_factory.mktemp("whole") / "workspace"
    shutil.copytree(prepared_llama / "workspace", root)
    return train(_run(root), Watch()), _adapter(root)


def _assert_same(adapter: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert adapter.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(adapter[name], value, atol=2e-5), name


def test_a_run_that_fits_stays_on_the_first_rung(whole: tuple[TrainResult, dict[str, torch.Tensor]]) -> None:
    document = whole[0].document()
    assert document["rung"] == _FIRST
    assert "failedRungs" not in document
    assert document["probe"]["sequenceLength"] > 0


@pytest.mark.parametrize(
    ("activity", "after_step", "failed_step", "resumed"),
    [
        ("ProbingMemory", 0, None, list(range(1, 9))),
        ("Training", 6, 7, [7, 8]),
        ("EvaluatingTuned", 0, None, []),
    ],
)
def test_a_full_gpu_takes_the_next_rung_and_ends_with_the_same_adapter(
    workspace: Path,
    whole: tuple[TrainResult, dict[str, torch.Tensor]],
    activity: str,
    after_step: int,
    failed_step: int | None,
    resumed: list[int],
) -> None:
    """At the probe, at step 7, which is in the second epoch, and during evaluation; it continues from step 6 or 8."""
    watch = Watch()
    with full_in(watch, activity, rows=3, after_step=after_step) as device:
        result = train(_run(workspace), watch)
    assert device.refusals == 1
    document = within_contract(StageResult(train=result), "1.5").document()["train"]
    assert document["rung"] == _SECOND
    failure = {**_FIRST, "activity": activity, **({} if failed_step is None else {"step": failed_step})}
    assert document["failedRungs"] == [failure]
    second = watch.seen[len(watch.seen) - watch.seen[::-1].index(("LoadingModel", 0)) :]
    assert [step for name, step in second if name == "Training"][1:] == resumed
    # After the last step nothing is left that a probe could be about.
    assert ("probe" in document) == bool(resumed)
    _assert_same(_adapter(workspace), whole[1])
    assert result.evaluation.verdict == whole[0].evaluation.verdict
    assert not WorkspaceLayout(workspace).marker("ladder").exists()


def test_a_full_gpu_in_the_base_evaluation_takes_the_next_rung(workspace: Path) -> None:
    watch = Watch()
    with full_in(watch, "EvaluatingBase", rows=2):
        result = train(_run(workspace, maximumSteps=1), watch)
    assert result.rung is not None
    assert result.rung.document() == _LAST
    assert [each.activity for each in result.failed_rungs or ()] == ["EvaluatingBase"] * 2


def test_an_interrupted_run_goes_on_with_its_rung_and_without_another_probe(
    workspace: Path, whole: tuple[TrainResult, dict[str, torch.Tensor]]
) -> None:
    class _Stop(Watch):
        def update(self, activity: str, step: int, total: int | None, **more: Any) -> None:
            super().update(activity, step, total, **more)
            if (activity, step, self.failed) == ("Training", 5, True):
                os.kill(os.getpid(), signal.SIGTERM)

        @property
        def failed(self) -> bool:
            return self.seen.count(("LoadingModel", 0)) > 1

    watch = _Stop()
    with full_in(watch, "Training", rows=3, after_step=4), pytest.raises(StageError) as caught:
        train(_run(workspace), watch)
    assert caught.value.reason is Reason.INTERRUPTED
    resumed = Watch()
    result = train(_run(workspace), resumed)
    assert "ProbingMemory" not in dict(resumed.seen)
    assert resumed.seen.count(("LoadingModel", 0)) == 1
    document = result.document()
    assert document["rung"] == _SECOND
    assert document["failedRungs"] == [{**_FIRST, "activity": "Training", "step": 5}]
    assert document["probe"] == whole[0].document()["probe"]
    _assert_same(_adapter(workspace), whole[1])


def test_a_training_that_ended_early_is_not_probed_again_on_the_next_rung(workspace: Path) -> None:
    """Nothing is left to train, so a probe that does not fit must not cost the trained adapter."""
    stopping = {"intervalSteps": 1, "patience": 1, "minimumImprovement": 100, "maximumRows": 2}
    watch = Watch()
    full = SmallGpu(
        lambda made: (
            (watch.activity, made.shape[0] > 2) == ("EvaluatingTuned", True)
            or (watch.activity == "ProbingMemory" and watch.seen.count(("LoadingModel", 0)) > 1)
        )
    )
    with full:
        result = train(_run(workspace, earlyStopping=stopping), watch)
    assert result.rung is not None
    assert result.rung.document() == _SECOND
    assert result.steps < _STEPS
    assert [each.activity for each in result.failed_rungs or ()] == ["EvaluatingTuned"]


def test_the_last_rung_is_evaluated_with_smaller_batches(workspace: Path) -> None:
    watch = Watch()
    with full_in(watch, "EvaluatingTuned", rows=2) as device:
        result = train(_run(workspace, maximumSteps=1, ladder=[]), watch)
    assert device.refusals > 0
    document = result.document()
    assert document["rung"] == _FIRST
    assert "failedRungs" not in document


def test_a_used_up_ladder_ends_with_every_rung_and_the_next_run_tries_again(workspace: Path) -> None:
    watch = Watch()
    with full_in(watch, "ProbingMemory", rows=1) as device, pytest.raises(StageError) as caught:
        train(_run(workspace), watch)
    assert device.refusals == 3
    assert caught.value.reason is Reason.GPU_OUT_OF_MEMORY
    assert exit_code(caught.value.reason) is ExitCode.GPU_OUT_OF_MEMORY
    for size, word in ((4, "without"), (2, "without"), (1, "with")):
        assert f"micro-batches of {size} {word} gradient checkpointing (ProbingMemory" in caught.value.message
    assert train(_run(workspace, maximumSteps=1), Watch()).rung is not None


def test_several_ranks_leave_the_next_rung_to_a_new_launch(workspace: Path) -> None:
    """All of them must take the same one."""
    ranks = Ranks()
    ranks.size = 2
    run, layout, device = _run(workspace), WorkspaceLayout(workspace), this_device("cpu")
    tried: list[Any] = []

    def attempt(of_rung: RunSpec, _ladder: Ladder, _is_last: Any) -> None:
        tried.append(rung_of(of_rung))
        raise DoesNotFitError("Training", 3, None, "full")

    for _ in range(2):
        with pytest.raises(RankDoesNotFitError, match="full"):
            fit(run, layout, device, attempt, lambda: None, ranks)
    with pytest.raises(StageError, match="no plan of the ladder fits"):
        fit(run, layout, device, attempt, lambda: None, ranks)
    assert tried == [rung_of(each) for each in runs_by_rung(run)]


def test_a_model_that_does_not_load_takes_no_other_rung(workspace: Path) -> None:
    """The memory of the weights is the same on every rung."""
    watch = Watch()
    with full_in(watch, "LoadingModel", rows=1) as device, pytest.raises(StageError) as caught:
        train(_run(workspace), watch)
    assert device.refusals == 1
    assert caught.value.reason is Reason.GPU_OUT_OF_MEMORY


def test_dequantized_weights_that_do_not_load_take_the_next_rung(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only they need more at loading than another rung."""

    def full(_model: Any) -> None:
        raise torch.OutOfMemoryError(MESSAGE)

    monkeypatch.setattr(stage, "dequantize_weights", full)
    result = train(_run(workspace, maximumSteps=1, weights="Dequantized", ladder=[_FIRST, _LAST]), Watch())
    assert result.rung is not None
    assert result.rung.document() == _FIRST
    (failed,) = result.failed_rungs or ()
    assert failed.document() == {**_FIRST, "weights": "Dequantized", "activity": "LoadingModel"}


def test_a_full_gpu_goes_from_dequantized_weights_to_packed_ones(
    workspace: Path, whole: tuple[TrainResult, dict[str, torch.Tensor]]
) -> None:
    """At step 7, after a checkpoint. The packed weights have the same values."""
    watch = Watch()
    with full_in(watch, "Training", rows=3, after_step=6):
        result = train(_run(workspace, weights="Dequantized"), watch)
    assert result.rung is not None
    assert result.rung.document() == _SECOND
    assert [each.weights for each in result.failed_rungs or ()] == ["Dequantized"]
    _assert_same(_adapter(workspace), whole[1])


def test_every_rung_has_the_same_rows_in_each_optimizer_step(workspace: Path) -> None:
    """Over two epochs of 22 rows, whose last step has two rows."""
    layout = WorkspaceLayout(workspace)
    table = open_table(layout.training_table)
    dataset = training_dataset(table).select(range(22))
    orders = []
    for run in runs_by_rung(_run(workspace)):
        watch = ProgressCallback(Watch(), StopRequest())
        batching = choose(run.training, table.longest(), None, None)
        trainer = _build_trainer(run, layout, _load(run, layout), dataset, batching, _STEPS, watch)
        loader = trainer.get_train_dataloader()
        steps = []
        for _ in range(2):
            for begun in loader:
                step = begun.result()
                rows = [
                    tuple(one.input_ids[0, place].tolist())
                    for one in step.passes
                    for place in one.packed.slices
                ]
                steps.append(sorted(rows))
                budget = rung_of(run).micro_batch_size * table.longest()
                assert all(one.input_ids.numel() <= budget for one in step.passes)
        orders.append(steps)
    assert len(orders[0]) == 12
    assert orders[0] == orders[1] == orders[2]
    assert orders[0][0] != orders[0][6]


def test_only_an_out_of_memory_error_of_the_device_takes_another_rung() -> None:
    with pytest.raises(ValueError, match="other"), fitting("Training"):
        raise ValueError("other")
    with pytest.raises(DoesNotFitError, match="CUDA out of memory") as caught, fitting("Training", lambda: 7):
        raise torch.OutOfMemoryError(MESSAGE)
    assert (caught.value.activity, caught.value.step, caught.value.reading) == ("Training", 7, None)


def test_a_failed_rung_has_the_measured_peaks(tmp_path: Path) -> None:
    error = DoesNotFitError("ProbingMemory", None, Reading(5, 6, 4, 1, 8), "")
    document = error.of_rung(rung_of(_run(tmp_path))).document()
    assert document == {**_FIRST, "activity": "ProbingMemory", "allocatedBytes": 5, "reservedBytes": 6}


def test_another_error_of_a_measurement_is_not_repeated() -> None:
    tried = []

    def measure(tokens: int) -> int:
        tried.append(tokens)
        if tokens > 3:
            raise torch.OutOfMemoryError(MESSAGE)
        if tokens > 2:
            raise ValueError("other")
        return tokens

    with pytest.raises(ValueError, match="other"):
        measure_within(measure, [5, 4, 3, 2])
    assert tried == [5, 4, 3]
    assert measure_within(measure, [4, 2]) == 2
    with pytest.raises(torch.OutOfMemoryError):
        measure_within(measure, [5, 4])
