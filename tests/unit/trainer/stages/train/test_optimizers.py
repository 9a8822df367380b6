"""A run keeps the form of the moments of its checkpoints, whatever its rung."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.contract.run_spec import Optimizer
from finetune_trainer.stages.train.checkpoint_files import RUN
from finetune_trainer.stages.train.checkpoints import publish_checkpoint
from finetune_trainer.stages.train.fit import DoesNotFitError, fit
from finetune_trainer.stages.train.ladder import Device, Ladder
from finetune_trainer.stages.train.optimizers import begun_optimizer, continued, with_optimizer
from finetune_trainer.stages.train.origin import origin_of
from finetune_trainer.stages.train.rungs import rung_of, runs_by_rung
from finetune_trainer.stages.train.stage import train
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file

from tests.support.small_gpu import Watch, full_in, pretend_gpu
from tests.support.workspaces import run_spec

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.contract.train_result import TrainResult

_DEVICE = Device(name="L4", bytes=24)


def _rung(size: int, optimizer: str, *, checkpointing: bool = False) -> dict[str, Any]:
    return {"microBatchSize": size, "gradientCheckpointing": checkpointing, "optimizer": optimizer}


_LADDER = [
    _rung(4, "AdamW8Bit"),
    _rung(2, "AdamW"),
    _rung(2, "AdamW8Bit"),
    _rung(2, "PagedAdamW8Bit"),
]


def _run(root: Path, **training: Any) -> RunSpec:
    return run_spec(
        root, root / "output", device="cuda", **{**_rung(4, "AdamW"), "ladder": _LADDER, **training}
    )


def _save(run: RunSpec, layout: WorkspaceLayout, step: int) -> None:
    """Publish a checkpoint that says no more than its run."""

    def write(folder: Path) -> dict[str, str]:
        (folder / RUN).write_text(json.dumps(dict(origin_of(run, layout).document)), encoding="utf-8")
        return {}

    publish_checkpoint(layout.checkpoints, step, write)


def _seen(runs: tuple[RunSpec, ...]) -> list[tuple[int, str | None]]:
    return [(run.training.micro_batch_size, run.training.optimizer) for run in runs]


def test_without_a_checkpoint_every_rung_has_its_own_optimizer(tmp_path: Path) -> None:
    runs = runs_by_rung(_run(tmp_path))
    assert continued(runs, None) == runs
    assert len(runs) == 5


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ("AdamW", [(4, "AdamW"), (2, "AdamW")]),
        ("AdamW8Bit", [(4, "AdamW8Bit"), (2, "AdamW8Bit"), (2, "PagedAdamW8Bit")]),
    ],
)
def test_a_begun_run_takes_only_rungs_with_its_form_of_moments_and_each_once(
    tmp_path: Path, begun: Optimizer, expected: list[tuple[int, str | None]]
) -> None:
    assert _seen(continued(runs_by_rung(_run(tmp_path)), begun)) == expected


def test_the_newest_checkpoint_of_the_run_says_how_it_has_begun(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    run = _run(tmp_path)
    assert begun_optimizer(run, layout) is None
    _save(with_optimizer(run, "AdamW"), layout, 1)
    assert begun_optimizer(run, layout) == "AdamW"
    _save(with_optimizer(run, "PagedAdamW8Bit"), layout, 2)
    assert begun_optimizer(run, layout) == "AdamW8Bit", "paged or not, which computes and saves the same"
    _save(_run(tmp_path, learningRate=0.1), layout, 3)
    assert begun_optimizer(run, layout) == "AdamW8Bit", "the newest one is of another run"
    assert begun_optimizer(run.model_copy(update={"device": "cpu"}), layout) is None


def _tried(run: RunSpec, *, save: bool, fits: int = 99) -> list[tuple[int, str | None, bool]]:
    """Return micro-batch, optimizer and "is last" of each rung that is tried, on a GPU which the attempt `fits` fits."""
    layout = WorkspaceLayout(run.workspace.path)
    tried: list[tuple[int, str | None, bool]] = []

    def attempt(of_rung: RunSpec, _ladder: Ladder, is_last: bool) -> None:  # noqa: FBT001 -- `fit` names it
        tried.append((of_rung.training.micro_batch_size, of_rung.training.optimizer, is_last))
        if len(tried) == fits:
            return
        if save:
            _save(of_rung, layout, len(tried))
        raise DoesNotFitError("Training", 1, None, "full")

    fit(run, layout, _DEVICE, attempt, lambda: begun_optimizer(run, layout))
    return tried


def test_before_the_first_checkpoint_a_full_gpu_may_change_the_optimizer(tmp_path: Path) -> None:
    """The rung of AdamW with the smallest micro-batch is the last one, once it has saved a checkpoint."""
    assert _tried(_run(tmp_path), save=False, fits=4) == [
        (4, "AdamW", False),
        (4, "AdamW8Bit", False),
        (2, "AdamW", True),
        (2, "AdamW8Bit", False),
    ]


def test_after_the_first_checkpoint_a_full_gpu_keeps_the_optimizer(tmp_path: Path) -> None:
    assert _tried(_run(tmp_path), save=True, fits=2) == [(4, "AdamW", False), (2, "AdamW", True)]


def test_a_run_that_an_older_operator_continues_keeps_its_optimizer(tmp_path: Path) -> None:
    """Its run spec names none, which otherwise means moments in 8 bits."""
    layout = WorkspaceLayout(tmp_path)
    run = run_spec(tmp_path, tmp_path / "output", device="cuda", microBatchSize=4)
    _save(with_optimizer(run, "AdamW"), layout, 7)
    assert _tried(run, save=False, fits=1) == [(4, "AdamW", True)]
    assert rung_of(run).optimizer == "PagedAdamW8Bit"


_STEPS = 8
# A matrix below 4,096 elements has moments in float32, whatever the optimizer.
_WIDE = {"rank": 64, "alpha": 64, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"}


def _trained(root: Path, watch: Watch, **training: Any) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    run = _run(root, maximumSteps=_STEPS, lora=_WIDE, checkpoint={"intervalSteps": 3}, **training)
    result = train(run, watch)
    return result, dict(load_file(WorkspaceLayout(root).adapter / "adapter_model.safetensors"))


def _copy(prepared: Path, to: Path) -> Path:
    shutil.copytree(prepared / "workspace", to)
    return to


@pytest.mark.slow
def test_moments_in_float32_go_on_with_the_next_micro_batch(
    prepared_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is full at step 5. The rung with 8-bit moments comes next, but they would not be those of four steps."""
    pretend_gpu(monkeypatch)
    _, whole = _trained(_copy(prepared_llama, tmp_path / "whole"), Watch(), ladder=[])
    watch = Watch()
    with full_in(watch, "Training", rows=3, after_step=4):
        result, adapter = _trained(_copy(prepared_llama, tmp_path / "climbed"), watch)
    document = result.document()
    assert document["rung"] == _rung(2, "AdamW")
    assert document["failedRungs"] == [{**_rung(4, "AdamW"), "activity": "Training", "step": 5}]
    for name, value in whole.items():
        assert torch.allclose(adapter[name], value, atol=2e-5), name


@pytest.mark.slow
def test_paged_moments_go_on_bit_for_bit_from_those_that_are_not(
    prepared_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes computes both with the same 8-bit states."""
    pretend_gpu(monkeypatch)
    eight = {**_rung(4, "AdamW8Bit"), "ladder": [_rung(4, "PagedAdamW8Bit")]}
    _, whole = _trained(_copy(prepared_llama, tmp_path / "whole"), Watch(), **eight)
    _, wide = _trained(_copy(prepared_llama, tmp_path / "wide"), Watch(), ladder=[])
    assert any(not torch.equal(wide[name], value) for name, value in whole.items())

    class _Once(Watch):
        """Looks full at step 5 of the first rung only."""

        @property
        def first(self) -> bool:
            return self.seen.count(("LoadingModel", 0)) == 1

    watch = _Once()
    full = full_in(watch, "Training", rows=3, after_step=4)
    refuses = full._refuses
    full._refuses = lambda made: watch.first and refuses(made)
    with full:
        result, adapter = _trained(_copy(prepared_llama, tmp_path / "climbed"), watch, **eight)
    assert result.document()["rung"] == _rung(4, "PagedAdamW8Bit")
    assert full.refusals == 1
    assert adapter.keys() == whole.keys()
    assert all(torch.equal(adapter[name], value) for name, value in whole.items())
