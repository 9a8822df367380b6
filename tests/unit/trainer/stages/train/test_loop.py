"""The trainer's checkpoints and stops, on a tiny real model with dropout."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train import stage
from finetune_trainer.stages.train.adapter import load_adapter_weights
from finetune_trainer.stages.train.batching import BatchingCallback, choose
from finetune_trainer.stages.train.checkpoints import newest_checkpoint
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.loop import AdapterTrainer
from finetune_trainer.stages.train.passes import StepCollator
from finetune_trainer.stages.train.prefetch import THREAD
from finetune_trainer.stages.train.probe import STEPS as PROBED
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stage import _build_trainer, _load, train
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.stages.train.unread import HostCopy
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.digests import folder_digests
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer

from tests.support.workspaces import run_spec

# Each test trains, some of them several times.
pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "maximumSteps": 8,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.2, "targetModules": "AllLinear", "variant": "Standard"},
}
"""An epoch has 6 steps of two micro-batches."""
_LAYER = 12
"""More modules than an adapted linear layer has."""


class _Steps(NullReporter):
    """Records the trained steps, and calls `act` with each reported activity and its step."""

    def __init__(self, act: Callable[[str, int], None] = lambda _activity, _step: None) -> None:
        super().__init__()
        self.steps: list[int] = []
        self._act = act

    def update(
        self, activity: str, step: int, total: int | None, *, loss: float | None = None, **more: Any
    ) -> None:
        super().update(activity, step, total, loss=loss, **more)
        if loss is not None:
            self.steps.append(step)
        self._act(activity, step)


def _run(workspace: Path, progress: NullReporter | None = None, **settings: Any) -> Any:
    run = run_spec(workspace, workspace / "output", **{**SETTINGS, **settings})
    return train(run, progress or NullReporter())


@pytest.fixture(scope="module")
def whole(prepared_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the adapter of a run that nothing interrupts."""
    workspace = tmp_path_factory.mktemp("whole") / "workspace"
    shutil.copytree(prepared_llama / "workspace", workspace)
    _run(workspace)
    return _adapter(workspace)


def _adapter(workspace: Path) -> bytes:
    return (WorkspaceLayout(workspace).adapter / "adapter_model.safetensors").read_bytes()


def _stop_in_micro_batch(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Send SIGTERM while the loss of this micro-batch of the training is computed."""
    real = AdapterTrainer.compute_loss
    seen = []

    def compute(trainer: AdapterTrainer, *arguments: Any, **settings: Any) -> Any:
        seen.extend([True] * (trainer.args.max_steps > PROBED))
        if len(seen) == number and trainer.args.max_steps > PROBED:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, *arguments, **settings)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", compute)


@pytest.mark.parametrize(
    ("micro_batch", "saved"),
    [(1, None), (5, 2), (6, 3), (12, 6), (13, 6), (15, 7)],
    ids=["first", "start of a step", "end of a step", "end of an epoch", "start of an epoch", "second epoch"],
)
def test_a_stop_in_a_micro_batch_loses_no_step_and_changes_no_bit_of_the_adapter(
    workspace: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, micro_batch: int, saved: int | None
) -> None:
    """The started step is dropped, and the random states are those at the end of the last finished one."""
    with monkeypatch.context() as patched:
        _stop_in_micro_batch(patched, micro_batch)
        with pytest.raises(StageError) as caught:
            _run(workspace)
    assert caught.value.reason is Reason.INTERRUPTED
    found = newest_checkpoint(WorkspaceLayout(workspace).checkpoints)
    assert (None if found is None else found[0]) == saved
    progress = _Steps()
    _run(workspace, progress)
    assert progress.steps == list(range((saved or 0) + 1, 9))
    assert _adapter(workspace) == whole


def test_a_stop_while_a_checkpoint_is_written_waits_for_it(
    workspace: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, SIGINT and SIGTERM again arrive during the first save."""
    real = AdapterTrainer._submit

    def submit(trainer: AdapterTrainer, finished: Any) -> None:
        real(trainer, finished)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "_submit", submit)
        with pytest.raises(StageError, match="step 3 of 8 is saved"):
            _run(workspace, checkpoint={"intervalSteps": 3})
    progress = _Steps()
    _run(workspace, progress)
    assert progress.steps == [4, 5, 6, 7, 8]
    assert _adapter(workspace) == whole


def test_an_error_in_a_step_saves_the_last_finished_one(
    workspace: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This serves a GPU that runs out of memory at a long row: the next attempt continues there."""
    real = AdapterTrainer.compute_loss

    def compute(trainer: AdapterTrainer, *arguments: Any, **settings: Any) -> Any:
        if trainer.state.global_step == 4:
            raise ValueError("a broken row")
        return real(trainer, *arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "compute_loss", compute)
        with pytest.raises(ValueError, match="broken"):
            _run(workspace)
    progress = _Steps()
    _run(workspace, progress)
    assert progress.steps == [5, 6, 7, 8]
    assert _adapter(workspace) == whole


def test_an_error_in_the_optimizer_saves_nothing_that_is_half_done(
    workspace: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.optim.AdamW.step
    seen = []

    def step(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        result = real(optimizer, *arguments)
        seen.append(True)
        if len(seen) == PROBED + 5:
            raise ValueError("half done")
        return result

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(ValueError, match="half done"):
            _run(workspace, checkpoint={"intervalSteps": 3})
    progress = _Steps()
    _run(workspace, progress)
    assert progress.steps == [4, 5, 6, 7, 8]
    assert _adapter(workspace) == whole


def test_weights_that_are_not_finite_never_enter_a_checkpoint(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update of step 4 breaks a weight. Loss and gradient of this step are finite, and it is saved."""
    real = torch.optim.AdamW.step
    seen = []

    def step(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        result = real(optimizer, *arguments)
        seen.append(True)
        if len(seen) == PROBED + 4:
            optimizer.param_groups[0]["params"][0].data[0, 0] = float("nan")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(StageError) as caught:
        _run(workspace, checkpoint={"intervalSteps": 2})
    assert caught.value.reason is Reason.NON_FINITE_LOSS
    assert "learningRate" in caught.value.message
    found = newest_checkpoint(WorkspaceLayout(workspace).checkpoints)
    assert found is not None
    assert found[0] == 2
    assert all(
        bool(value.isfinite().all()) for value in load_file(found[1] / "adapter_model.safetensors").values()
    )


def _as_before_packing(patched: pytest.MonkeyPatch) -> None:
    """Let TRAIN pad the rows of a micro-batch and name no kind, as trainers before contract 1.6."""
    patched.setattr(stage, "choose", lambda training, longest, *_: choose(training, longest, "AsDrawn", None))
    patched.setattr(BatchingCallback, "on_train_begin", lambda *_arguments, **_settings: None)


def test_a_run_of_an_older_trainer_is_resumed_unpacked(
    workspace: Path, prepared_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until contract 1.5, transformers wrote the files, and none of them named the run. Nothing of the run changes."""

    def save(trainer: Any, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(trainer, model, trial)
        folder = trainer.checkpoints / f"checkpoint-{trainer.state.global_step}"
        write_json_atomically(folder / "files.json", folder_digests(folder))
        raise KeyboardInterrupt

    uninterrupted = tmp_path / "uninterrupted"
    shutil.copytree(prepared_llama / "workspace", uninterrupted)
    with monkeypatch.context() as patched:
        _as_before_packing(patched)
        _run(uninterrupted)
        patched.setattr(AdapterTrainer, "_save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            _run(workspace, checkpoint={"intervalSteps": 3})
    progress = _Steps()
    result = _run(workspace, progress)
    assert progress.steps == [4, 5, 6, 7, 8]
    assert _adapter(workspace) == _adapter(uninterrupted)
    assert result.batching.kind == "AsDrawn"


def test_packed_and_grouped_runs_learn_the_same(
    prepared_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, whose draws depend on the shapes. Every fifth step ends an epoch, with 4 rows instead of 5."""
    found = []
    counts: list[tuple[int, int]] = []
    real = AdapterTrainer._report

    def report(trainer: AdapterTrainer, entry: dict[str, Any]) -> None:
        real(trainer, entry)
        counts.append((entry["examples"], entry["tokens"]))

    monkeypatch.setattr(AdapterTrainer, "_report", report)
    for packing, kind in (("Auto", "Packed"), ("Never", "Grouped")):
        root = tmp_path / packing
        shutil.copytree(prepared_llama / "workspace", root)
        lora = {**SETTINGS["lora"], "dropout": 0}
        counts.clear()
        result = _run(root, lora=lora, packing=packing, effectiveBatchSize=5, microBatchSize=5)
        assert result.batching.kind == kind
        assert (result.batching.real_tokens == 1) == (kind == "Packed")
        assert [examples for examples, _ in counts] == [5, 5, 5, 5, 4, 5, 5, 5]
        found.append((load_file(WorkspaceLayout(root).adapter / "adapter_model.safetensors"), list(counts)))
    (packed, counted), (grouped, others) = found
    assert counted == others
    for name, value in packed.items():
        assert torch.allclose(value, grouped[name], atol=2e-5), name


class _Reads(TorchDispatchMode):
    """Counts operators whose result the host must know, which makes it wait for a GPU."""

    _WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotations here
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self._WAITING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the numbers of a step arrive late, as from a GPU that still computes it."""
    monkeypatch.setattr(HostCopy, "arrived", property(lambda _copy: False))


def _trainer(workspace: Path, watch: ProgressCallback, steps: int, **settings: Any) -> AdapterTrainer:
    run = run_spec(workspace, workspace / "output", **{**SETTINGS, **settings})
    layout = WorkspaceLayout(workspace)
    table = open_table(layout.training_table)
    batching = choose(run.training, table.longest(), None, None)
    return _build_trainer(run, layout, _load(run, layout), training_dataset(table), batching, steps, watch)


_WALKS = (
    "_named_members",
    "apply",
    "named_children",
    "named_modules",
    "train",
    "zero_grad",
)
"""Methods of a module that visit the modules below it. All others of torch call one of them."""


def _walks(model: nn.Module, patched: pytest.MonkeyPatch) -> list[str]:
    """Record each walk over the modules below one of `model`, but for those below a single adapted layer."""
    found: list[str] = []
    trees = {id(module) for module in model.modules() if len(list(module.modules())) > _LAYER}
    for name in _WALKS:
        real = getattr(nn.Module, name)

        def walk(
            module: nn.Module, *arguments: Any, _name: str = name, _real: Any = real, **more: Any
        ) -> Any:
            if id(module) in trees:
                found.append(_name)
            return _real(module, *arguments, **more)

        patched.setattr(nn.Module, name, walk)
    return found


@pytest.mark.parametrize("checkpointing", ["with", "without"])
def test_no_step_walks_over_the_modules(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: str
) -> None:
    """On a 7B model, each walk takes tens of milliseconds. Steps 2 and 3 of 4 count."""
    watch = ProgressCallback(NullReporter(), StopRequest())
    trainer = _trainer(workspace, watch, 4, microBatchSize=1, gradientCheckpointing=checkpointing == "with")
    found = _walks(trainer.adapted, monkeypatch)
    within: list[list[str]] = []
    step = AdapterTrainer.training_step

    def count(*arguments: Any, **settings: Any) -> Any:
        within.append(list(found))
        found.clear()
        return step(*arguments, **settings)

    monkeypatch.setattr(AdapterTrainer, "training_step", count)
    trainer.train()
    assert "train" in within[0], "the walks before the first step are seen"
    assert within[2:] == [[], []]


def test_the_model_forgets_how_a_training_zeroes_its_gradients(workspace: Path) -> None:
    trainer = _trainer(workspace, ProgressCallback(NullReporter(), StopRequest()), 1)
    trainer.train()
    assert "zero_grad" not in vars(trainer.adapted)
    assert all(value.grad is None for value in trainer.adapted.parameters())


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("checkpointing", ["with", "without"])
def test_no_step_waits_for_the_device_before_the_next_one_is_queued(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: str
) -> None:
    """Loss and gradient of a step are read together. Only the last step is read at its own end."""
    watch = ProgressCallback(NullReporter(), StopRequest())
    settings = {"microBatchSize": 1, "gradientCheckpointing": checkpointing == "with"}
    trainer = _trainer(workspace, watch, 4, **settings)
    reads, watching = _Reads(), ExitStack()
    begun: list[bool] = []
    read: list[tuple[int, int]] = []
    epoch: Any = AdapterTrainer._run_epoch
    step, taken = AdapterTrainer.training_step, HostCopy.read

    def observed(*arguments: Any, **settings: Any) -> Any:
        with watching:
            return epoch(*arguments, **settings)

    def count(*arguments: Any, **settings: Any) -> Any:
        if not begun:
            # Before, the loader draws a seed on the host.
            watching.enter_context(reads)
        begun.append(True)
        return step(*arguments, **settings)

    def take(copy: HostCopy) -> list[float]:
        read.append((len(read) + 1, len(begun)))
        return taken(copy)

    monkeypatch.setattr(AdapterTrainer, "_run_epoch", observed)
    monkeypatch.setattr(AdapterTrainer, "training_step", count)
    monkeypatch.setattr(HostCopy, "read", take)
    # The optimizer of a CPU keeps its count of steps on the host.
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_arguments: None)
    trainer.train()
    assert reads.found == []
    assert read == [(1, 2), (2, 3), (3, 4), (4, 4)], (
        "the step that is read, and the newest one that is queued"
    )
    assert len(watch.losses) == 4


def _prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def test_a_thread_reads_the_rows_and_ends_with_the_training(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    progress = _Steps()
    real = StepCollator.__call__

    def collate(collator: StepCollator, rows: Any) -> Any:
        made.append((threading.current_thread().name, len(progress.steps)))
        return real(collator, rows)

    monkeypatch.setattr(StepCollator, "__call__", collate)
    _run(workspace, progress)
    assert {name.rpartition("_")[0] for name, _ in made} == {THREAD}
    in_training = made[PROBED:]
    # Two epochs of 6 steps, of which the second ends early: at most one more step is made than is used.
    assert len(in_training) in (8, 9)
    assert all(number - finished <= 1 for number, (_, finished) in enumerate(in_training))
    for thread in _prefetching():
        thread.join(20)
    assert _prefetching() == []


def test_an_error_while_rows_are_read_has_its_type_and_saves_the_last_step(
    workspace: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StepCollator.__call__
    made: list[bool] = []

    def collate(collator: StepCollator, rows: Any) -> Any:
        made.append(True)
        if len(made) == PROBED + 4:
            raise OSError("the volume is gone")
        return real(collator, rows)

    with monkeypatch.context() as patched:
        patched.setattr(StepCollator, "__call__", collate)
        with pytest.raises(OSError, match="volume is gone"):
            _run(workspace)
    progress = _Steps()
    _run(workspace, progress)
    assert progress.steps == [4, 5, 6, 7, 8]
    assert _adapter(workspace) == whole


def test_a_stop_does_not_wait_for_rows_that_nobody_can_read(
    workspace: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StepCollator.__call__
    made: list[bool] = []
    goes_on = threading.Event()
    waited: list[bool] = []

    def collate(collator: StepCollator, rows: Any) -> Any:
        made.append(True)
        if len(made) == PROBED + 4:
            os.kill(os.getpid(), signal.SIGTERM)
            goes_on.wait(60)
            waited.append(True)
        return real(collator, rows)

    with monkeypatch.context() as patched:
        patched.setattr(StepCollator, "__call__", collate)
        with pytest.raises(StageError) as caught:
            _run(workspace)
    assert waited == []
    goes_on.set()
    assert caught.value.reason is Reason.INTERRUPTED
    progress = _Steps()
    _run(workspace, progress)
    assert progress.steps in ([3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8]), "no step is lost, wherever it arrives"
    assert _adapter(workspace) == whole


@pytest.mark.usefixtures("behind")
def test_a_device_that_is_behind_changes_neither_history_nor_adapter(
    workspace: Path, prepared_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a checkpoint, and of one that a stop saves in the middle of a step."""
    at_once = tmp_path / "at-once"
    shutil.copytree(prepared_llama / "workspace", at_once)
    histories: dict[Path, list[list[dict[str, Any]]]] = {at_once: [], workspace: []}
    real = AdapterTrainer._submit

    def submit(trainer: AdapterTrainer, finished: Any) -> None:
        real(trainer, finished)
        histories[at_once if at_once in trainer.checkpoints.parents else workspace].append(
            list(trainer.state.log_history)
        )

    monkeypatch.setattr(AdapterTrainer, "_submit", submit)
    for root in (at_once, workspace):
        with monkeypatch.context() as patched:
            if root == at_once:
                patched.setattr(HostCopy, "arrived", property(lambda _copy: True))
            _stop_in_micro_batch(patched, 9)
            with pytest.raises(StageError, match="step 4 of 8 is saved"):
                _run(root, checkpoint={"intervalSteps": 3})
        progress = _Steps()
        _run(root, progress, checkpoint={"intervalSteps": 3})
        assert progress.steps == [5, 6, 7, 8]
    assert histories[at_once] == histories[workspace]
    assert [[entry["step"] for entry in saved] for saved in histories[workspace]] == [
        list(range(1, step + 1)) for step in (3, 4, 6, 8)
    ]
    assert _adapter(workspace) == _adapter(at_once)


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("ending", ["goes on", "stop", "error"])
def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The loss of step 5 is NaN, and the host learns it after it has queued step 6, or at the end of the run."""
    real = AdapterTrainer.compute_loss
    queued: list[int] = []

    def compute(trainer: AdapterTrainer, *arguments: Any, **settings: Any) -> Any:
        queued.append(trainer.state.global_step + 1)
        if trainer.args.max_steps > PROBED and queued[-1] == 6 and ending != "goes on":
            if ending == "error":
                raise ValueError("a broken row")
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, *arguments, **settings) * (float("nan") if queued[-1] == 5 else 1)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", compute)
    with pytest.raises(StageError, match="at step 5 of 8") as caught:
        _run(workspace, checkpoint={"intervalSteps": 2})
    assert caught.value.reason is Reason.NON_FINITE_LOSS
    assert queued[-1] == 6
    found = newest_checkpoint(WorkspaceLayout(workspace).checkpoints)
    assert found is not None
    assert found[0] == 4


@pytest.mark.parametrize("change", ["spec", "setting"])
def test_a_checkpoint_of_another_run_is_not_resumed(
    workspace: Path, whole: bytes, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    def stop(activity: str, step: int) -> None:
        if (activity, step) == ("Training", 3):
            os.kill(os.getpid(), signal.SIGTERM)

    other = run_spec(workspace, workspace, **{**SETTINGS, **({"seed": 12} if change == "setting" else {})})
    if change == "spec":
        other = other.model_copy(update={"spec_hash": "sha256:" + "9" * 64})
    with pytest.raises(StageError):
        train(other, _Steps(stop))
    progress = _Steps()
    _run(workspace, progress)
    assert "checkpoint of step 3 is skipped: it was written with" in caplog.text
    assert progress.steps == list(range(1, 9))
    assert _adapter(workspace) == whole


@pytest.mark.parametrize(
    ("activity", "said"),
    [
        ("LoadingModel", "no step had been finished"),
        ("ProbingMemory", "no step had been finished"),
        ("EvaluatingBase", "no step had been finished"),
        ("EvaluatingTuned", "step 8 of 8 is saved"),
    ],
)
def test_a_stop_outside_of_training_is_an_interruption_that_names_what_is_kept(
    workspace: Path, whole: bytes, activity: str, said: str
) -> None:
    def stop(found: str, _step: int) -> None:
        if found == activity:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StageError, match=said) as caught:
        _run(workspace, _Steps(stop))
    assert caught.value.reason is Reason.INTERRUPTED
    progress = _Steps()
    _run(workspace, progress)
    assert progress.steps == ([] if activity == "EvaluatingTuned" else list(range(1, 9)))
    assert _adapter(workspace) == whole


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(x)
        return out


def _adapted() -> nn.Module:
    model: nn.Module = get_peft_model(_Model(), LoraConfig(r=2, target_modules=["proj"]))
    return model


def _saved(folder: Path) -> Path:
    torch.manual_seed(5)
    values = {name: torch.randn_like(value) for name, value in get_peft_model_state_dict(_adapted()).items()}
    save_file(values, folder / "adapter_model.safetensors")
    return folder


def test_a_saved_adapter_is_loaded_unchanged(tmp_path: Path) -> None:
    model = _adapted()
    load_adapter_weights(model, _saved(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in get_peft_model_state_dict(model).items())


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_an_adapter_of_another_shape_is_refused(tmp_path: Path, change: str) -> None:
    file = _saved(tmp_path) / "adapter_model.safetensors"
    values = load_file(file)
    if change == "missing":
        values.pop(next(iter(values)))
    else:
        values["base_model.model.other.lora_A.weight"] = torch.zeros(2, 4)
    save_file(values, file)
    with pytest.raises(RuntimeError, match=f"1 {change}"):
        load_adapter_weights(_adapted(), tmp_path)


def test_a_request_that_a_library_turns_into_its_own_error_is_an_interruption(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python itself does so while it defines a class: loading a model imports one."""

    def load(*_arguments: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("Error calling __set_name__") from error

    monkeypatch.setattr("finetune_trainer.stages.train.stage.load_quantized", load)
    with pytest.raises(StageError) as caught:
        _run(workspace)
    assert caught.value.reason is Reason.INTERRUPTED
