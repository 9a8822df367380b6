"""Several processes train as one does: the same curve, the same adapter, and the same state after a stop or a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.contract.rank_layout import RankLayout
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.checkpoints import saved_steps
from finetune_trainer.stages.train.ranks import launch
from finetune_trainer.stages.train.ranks.channel import Ends, Failure, Listening
from finetune_trainer.stages.train.ranks.launch import failure_of, train_on_ranks
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker
from safetensors.torch import load_file

from tests.support.results import TRAIN
from tests.support.workspaces import SPEC_HASH, prepare, prepare_small, run_spec, write_base

STEPS, INTERVAL = 20, 4
SETTINGS: dict[str, Any] = {
    "maximumSteps": STEPS,
    "learningRate": 0.002,
    "effectiveBatchSize": 8,
    "microBatchSize": 2,
    "checkpoint": {"intervalSteps": INTERVAL},
}
"""An epoch has 3 steps of 8 rows."""
SHARDED: dict[str, Any] = {"parallelism": "FullyShard"}
WAYS = pytest.mark.parametrize("way", [{}, SHARDED], ids=["replicas", "sharded"])
NAMES = ("loss", "gradientNorm", "learningRate")


class _Act(NullReporter):
    """Calls `act` with each step that is reported, and keeps the steps."""

    def __init__(self, act: Callable[[int], None] = lambda _step: None) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.numbers: dict[str, Any] = {}
        self._act = act

    def update(self, activity: str, step: int, total: int | None, **numbers: Any) -> None:
        del total
        if activity == "Training" and numbers.get("loss") is not None:
            self.steps.append(step)
            self._act(step)

    def measure(self, **numbers: Any) -> None:
        self.numbers |= numbers


def _curve(workspace: Path) -> list[dict[str, float]]:
    report = json.loads((WorkspaceLayout(workspace).report / "training.json").read_text())
    return list(report["points"])


def _adapter(workspace: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(WorkspaceLayout(workspace).adapter / "adapter_model.safetensors"))


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _train(workspace: Path, processes: int, progress: Any = None, **settings: Any) -> TrainResult:
    run = run_spec(workspace, workspace / "output", **{**SETTINGS, **settings})
    progress = progress or NullReporter()
    return train(run, progress) if processes == 1 else train_on_ranks(run, progress, processes)


def _require_equal(found: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Compare losses, gradient norms and rates of all steps, 1e-5, and the adapters."""
    curve = _curve(found)
    assert [point["step"] for point in curve] == list(range(1, STEPS + 1))
    for point, other in zip(curve, _curve(expected), strict=True):
        for name in NAMES:
            assert point[name] == pytest.approx(other[name], abs=1e-5), (point["step"], name)
    one, two = _adapter(found), _adapter(expected)
    assert one.keys() == two.keys()
    for name, value in two.items():
        assert torch.allclose(one[name], value, rtol=0, atol=tolerance), name


@pytest.fixture(scope="module")
def one(prepared_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """Return the workspace and the result of one process that nothing interrupts."""
    workspace = _copy(prepared_llama / "workspace", tmp_path_factory.mktemp("one") / "workspace")
    return workspace, _train(workspace, 1)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> list[Listening]:
    """Return a list that gets what each launch knows of its ranks."""
    found: list[Listening] = []

    class _Kept(Listening):
        def __init__(self, progress: Any) -> None:
            super().__init__(progress)
            found.append(self)

    monkeypatch.setattr(launch, "Listening", _Kept)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, {}),
        (4, {"gradientCheckpointing": True}),
        (3, {"weights": "Dequantized", "packing": "Never"}),
        (2, SHARDED),
        (4, {**SHARDED, "gradientCheckpointing": True}),
        (3, {**SHARDED, "weights": "Dequantized", "packing": "Never"}),
    ],
    ids=[
        "2",
        "4 recomputing",
        "3 unpacked",
        "2 sharded",
        "4 sharded recomputing",
        "3 sharded unpacked",
    ],
)
def test_ranks_have_the_curve_and_the_adapter_of_one_process(
    workspace: Path, one: tuple[Path, TrainResult], processes: int, settings: dict[str, Any]
) -> None:
    progress = _Act()
    result = _train(workspace, processes, progress, **settings)
    expected = one[1]
    _require_equal(workspace, one[0])
    assert progress.steps == list(range(1, STEPS + 1))
    assert len(progress.numbers["rank_seconds"]) == processes
    assert all(0 < seconds < 600 for seconds in progress.numbers["rank_seconds"])
    assert len(progress.numbers["rank_host_bytes"]) == processes
    assert all(1 << 24 < size < 1 << 40 for size in progress.numbers["rank_host_bytes"])
    assert "rank_device_bytes" not in progress.numbers
    assert result.evaluation.base_loss == pytest.approx(expected.evaluation.base_loss, abs=1e-6)
    assert result.evaluation.tuned_loss == pytest.approx(expected.evaluation.tuned_loss, abs=1e-5)
    assert result.steps == STEPS
    layout = WorkspaceLayout(workspace)
    assert TrainResult.read(read_marker(layout, "train", SPEC_HASH)) == result
    assert not layout.checkpoints.exists()
    assert layout.verification.exists()


def _node(workspace: Path, index: int, kill_at: int | None, answer: Any) -> None:
    """Train as the pod of one of two nodes with one process each, and send the result or the failure."""
    os.environ |= {
        "JOB_COMPLETION_INDEX": str(index),
        "FINETUNE_POD_ADDRESS": "127.0.0.1",
        # The name of this machine may lead nowhere, unlike that of a pod.
        "GLOO_SOCKET_IFNAME": "lo",
    }
    run = run_spec(workspace, workspace / "output", **SETTINGS)
    run = run.model_copy(update={"ranks": RankLayout(nodes=2, per_node=1)})

    def stop(step: int) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)

    progress = _Act(stop)
    try:
        answer.send((train_on_ranks(run, progress, 1, nodes=2).document(), None, progress.steps))
    except StageError as error:
        answer.send((None, (error.reason, error.message), progress.steps))


def _two_nodes(workspace: Path, kill_at: int | None = None) -> list[Any]:
    """Return what the pods of two nodes answer. The first one gets a signal at the step `kill_at`."""
    context = multiprocessing.get_context("spawn")
    ends = []
    for index in (1, 0):
        own, other = context.Pipe(duplex=False)
        pod = context.Process(target=_node, args=(workspace, index, None if index else kill_at, other))
        pod.start()
        ends.append((own, pod))
    answers = []
    for own, pod in reversed(ends):
        assert own.poll(300), "a pod must answer"
        answers.append(own.recv())
        pod.join(30)
    return answers


@pytest.mark.slow
def test_pods_of_two_nodes_stop_together_and_then_have_the_adapter_of_one_process(
    workspace: Path, one: tuple[Path, TrainResult]
) -> None:
    stopped = _two_nodes(workspace, kill_at=6)
    saved = saved_steps(WorkspaceLayout(workspace).checkpoints)
    assert saved is not None
    for result, (reason, message), _steps in stopped:
        assert result is None
        assert reason is Reason.INTERRUPTED, message
    first, second = _two_nodes(workspace)
    assert first[0] == second[0] is not None
    assert first[2] == list(range(saved[0] + 1, STEPS + 1))
    # The first rank alone tells progress.
    assert second[2] == []
    _require_equal(workspace, one[0])


@pytest.mark.slow
@WAYS
def test_a_killed_rank_ends_all_is_named_and_any_number_of_ranks_resumes(
    workspace: Path,
    one: tuple[Path, TrainResult],
    listening: list[Listening],
    tmp_path: Path,
    way: dict[str, Any],
) -> None:
    """Four ranks go on in the other way."""
    chance = random.Random(20)  # noqa: S311 -- moments of a test
    rank, step = chance.randrange(2), chance.randint(INTERVAL + 1, STEPS - 2)

    def kill(reported: int) -> None:
        if reported == step:
            os.kill(listening[-1].ends.processes[rank], signal.SIGKILL)

    with pytest.raises(StageError, match=f"none of rank {rank} of 2") as caught:
        _train(workspace, 2, _Act(kill), **way)
    assert (caught.value.reason, caught.value.rank) == (Reason.INTERNAL_ERROR, rank)
    saved = saved_steps(WorkspaceLayout(workspace).checkpoints)
    assert saved is not None
    assert step - INTERVAL <= saved[0]
    other = {} if way else SHARDED
    for processes, next_way in ((1, way), (2, way), (4, other)):
        resumed = _copy(workspace, tmp_path / f"resumed-{processes}")
        progress = _Act()
        _train(resumed, processes, progress, **next_way)
        assert progress.steps == list(range(saved[0] + 1, STEPS + 1))
        _require_equal(resumed, one[0])


@pytest.mark.slow
@WAYS
def test_a_signal_to_one_rank_leads_to_one_checkpoint_of_all(
    workspace: Path, one: tuple[Path, TrainResult], listening: list[Listening], way: dict[str, Any]
) -> None:
    def stop(reported: int) -> None:
        if reported == 6:
            os.kill(listening[-1].ends.processes[1], signal.SIGTERM)

    progress = _Act(stop)
    with pytest.raises(StageError, match="stopped by SIGTERM of rank 1") as caught:
        _train(workspace, 2, progress, **way)
    assert caught.value.reason is Reason.INTERRUPTED
    saved = saved_steps(WorkspaceLayout(workspace).checkpoints)
    assert saved is not None
    assert f"step {saved[0]} of {STEPS} is saved" in caught.value.message
    assert progress.steps == list(range(1, saved[0] + 1))
    resumed = _Act()
    _train(workspace, 4, resumed)
    assert resumed.steps == list(range(saved[0] + 1, STEPS + 1))
    _require_equal(workspace, one[0])


@pytest.mark.slow
def test_a_stopped_run_with_dropout_ends_with_the_same_bits_on_as_many_ranks(
    workspace: Path, tmp_path: Path
) -> None:
    """The signal comes to the launching process, which keeps its handlers."""
    other = _copy(workspace, tmp_path / "other")
    lora = {"rank": 4, "alpha": 8, "dropout": 0.2, "targetModules": "AllLinear", "variant": "Standard"}
    before = signal.getsignal(signal.SIGTERM)

    def stop(reported: int) -> None:
        if reported == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        StageError, match=r"stopped by SIGTERM, and its state at step \d+ of 20 is saved"
    ) as caught:
        _train(workspace, 2, _Act(stop), lora=lora)
    assert caught.value.reason is Reason.INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) is before
    saved = saved_steps(WorkspaceLayout(workspace).checkpoints)
    assert saved is not None
    resumed = _Act()
    _train(workspace, 2, resumed, lora=lora)
    assert resumed.steps == list(range(saved[0] + 1, STEPS + 1))
    _train(other, 2, lora=lora)
    expected = _adapter(other)
    assert all(torch.equal(value, expected[name]) for name, value in _adapter(workspace).items())


@pytest.mark.slow
def test_ranks_choose_and_publish_the_step_of_one_process(workspace: Path, tmp_path: Path) -> None:
    """The rate is so high that the losses of other rows rise, and training ends early."""
    settings: dict[str, Any] = {
        "learningRate": 0.005,
        "checkpoint": {"intervalSteps": 2, "keep": "Best"},
        "earlyStopping": {"intervalSteps": 1, "patience": 2, "minimumImprovement": 0, "maximumRows": 2},
    }
    other = _copy(workspace, tmp_path / "other")
    expected = _train(other, 1, **settings).selection
    found = _train(workspace, 2, **settings).selection
    assert expected is not None
    assert found is not None
    assert expected.best_loss is not None
    assert found.best_loss == pytest.approx(expected.best_loss, abs=1e-5)
    assert found.model_copy(update={"best_loss": expected.best_loss}) == expected
    assert expected.published_step < expected.planned_steps


@pytest.mark.slow
@pytest.mark.full
def test_a_rank_that_hangs_ends_all_after_the_timeout_and_is_named(
    workspace: Path, listening: list[Listening]
) -> None:
    """The launcher waits 30 seconds until it kills a process."""

    def hang(reported: int) -> None:
        if reported == 3:
            os.kill(listening[-1].ends.processes[1], signal.SIGSTOP)

    run = run_spec(workspace, workspace / "output", **SETTINGS)
    with pytest.raises(StageError, match="none of rank 1 of 2") as caught:
        train_on_ranks(run, _Act(hang), 2, 5)
    assert caught.value.reason is Reason.INTERNAL_ERROR
    assert saved_steps(WorkspaceLayout(workspace).checkpoints) is not None


@pytest.mark.slow
@WAYS
def test_a_rank_without_a_row_takes_part(workspace: Path, way: dict[str, Any]) -> None:
    """The last step of an epoch of 24 rows in steps of 23 has one row."""
    settings = {"effectiveBatchSize": 23, "microBatchSize": 1, "maximumSteps": 4}
    other = _copy(workspace, workspace.parent / "other")
    _train(workspace, 2, **settings, **way)
    _train(other, 1, **settings)
    for point, expected in zip(_curve(workspace), _curve(other), strict=True):
        assert point["loss"] == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.slow
def test_sharded_ranks_of_a_model_with_its_own_head_answer_as_one_process(tmp_path: Path) -> None:
    """The adapter is rank-stabilized, and a third rank makes the parts of matrices uneven."""
    write_base(tmp_path / "base", "qwen3", shard="60KB")
    prepare(tmp_path / "one", tmp_path / "base")
    _copy(tmp_path / "one", tmp_path / "three")
    lora = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "RankStabilized"}
    answers = []
    for name, processes in (("one", 1), ("three", 3)):
        run = run_spec(tmp_path / name, tmp_path / "output", **{**SETTINGS, **SHARDED, "lora": lora})
        asking = run.evaluation.model_copy(update={"generated_rows": 6, "sample_prompts": ("say 7",)})
        run = run.model_copy(update={"evaluation": asking})
        result = (
            train(run, NullReporter()) if processes == 1 else train_on_ranks(run, NullReporter(), processes)
        )
        report = json.loads((WorkspaceLayout(tmp_path / name).report / "evaluation.json").read_text())
        answers.append((result.evaluation.metrics, report["samples"], report["rows"]))
    _require_equal(tmp_path / "three", tmp_path / "one")
    assert answers[0] == answers[1]
    assert len(answers[0][2]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.full)])
def test_sharded_ranks_of_a_mixture_of_experts_train_as_one_process(processes: int, tmp_path: Path) -> None:
    """Rows of the ranks take other experts, and layers are recomputed.

    Few tokens reach some experts. Adam divides by the size of their gradients, and so it magnifies the rounding of sums.
    """
    prepare_small(tmp_path, "qwen3_moe")
    _copy(tmp_path / "workspace", tmp_path / "ranks")
    settings = {**SHARDED, "gradientCheckpointing": True}
    _train(tmp_path / "workspace", 1, **settings)
    _train(tmp_path / "ranks", processes, **settings)
    _require_equal(tmp_path / "ranks", tmp_path / "workspace", tolerance=1e-4)
    assert any("experts.3.down_proj.lora_B" in name for name in _adapter(tmp_path / "ranks"))


def _failure(reason: Reason = Reason.INTERNAL_ERROR, message: str = "broken", **more: Any) -> Failure:
    return Failure(reason, message, **more)


def _full() -> Ends:
    full = _failure(Reason.GPU_OUT_OF_MEMORY, "full", retries=True)
    return Ends(failures={0: _failure(lost=True), 1: full})


def test_all_ranks_begin_again_if_the_gpu_of_one_is_full(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([_full(), Ends(results={0: TRAIN.document(), 1: None})])
    monkeypatch.setattr(launch, "_launch", lambda *_arguments: (next(left), None))
    ladder = [{"microBatchSize": 1, "gradientCheckpointing": True}]
    run = run_spec(workspace, workspace / "output", **SETTINGS, ladder=ladder)
    assert train_on_ranks(run, NullReporter(), 2) == TRAIN
    assert list(left) == []


def test_a_full_gpu_on_the_last_rung_is_the_failure(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_launch", lambda *_arguments: (_full(), None))
    run = run_spec(workspace, workspace / "output", **SETTINGS)
    with pytest.raises(StageError, match="rank 1 of 2: full") as caught:
        train_on_ranks(run, NullReporter(), 2)
    assert caught.value.reason is Reason.GPU_OUT_OF_MEMORY


def test_a_rank_that_told_nothing_is_the_cause() -> None:
    found = failure_of(Ends(failures={0: _failure(lost=True), 2: _failure(lost=True)}), 3)
    assert (found.reason, found.rank) == (Reason.INTERNAL_ERROR, 1)
    assert "none of rank 1 of 3" in found.message


def test_an_own_failure_is_the_cause_and_not_those_that_follow_from_it() -> None:
    failures = {
        0: _failure(lost=True),
        1: _failure(Reason.INTERRUPTED, "stopped"),
        2: _failure(Reason.WORKSPACE_FULL, "no space"),
    }
    found = failure_of(Ends(failures=failures), 3)
    assert (found.reason, found.message) == (Reason.WORKSPACE_FULL, "rank 2 of 3: no space")
    assert found.rank == 2


def test_a_failure_of_all_ranks_names_none() -> None:
    found = failure_of(Ends(failures=dict.fromkeys(range(2), _failure(Reason.NON_FINITE_LOSS, "nan"))), 2)
    assert (found.reason, found.message, found.rank) == (Reason.NON_FINITE_LOSS, "nan", None)


def test_ranks_that_only_lost_each_other_are_an_internal_error() -> None:
    failures = {rank: _failure(message="Connection closed by peer", lost=True) for rank in range(2)}
    assert failure_of(Ends(failures=failures), 2).reason is Reason.INTERNAL_ERROR
    failures[0] = _failure(message="Connection reset", lost=True)
    found = failure_of(Ends(failures=failures), 2)
    assert (found.rank, found.message) == (None, "rank 0 of 2: Connection reset")


def test_each_pod_of_several_nodes_reports_its_own_ranks(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    run = run_spec(workspace, workspace / "output", **SETTINGS)
    run = run.model_copy(update={"ranks": RankLayout(nodes=2, per_node=2)})
    lost = _failure(message="Connection closed by peer", lost=True)
    for ends, reason, text, rank in (
        (Ends(failures={2: lost, 3: lost}), Reason.INTERRUPTED, "a rank of another node was lost", None),
        (
            Ends(failures={2: lost, 3: _failure(Reason.WORKSPACE_FULL, "no space")}),
            Reason.WORKSPACE_FULL,
            "rank 3 of 4",
            3,
        ),
        (Ends(failures={2: lost}), Reason.INTERNAL_ERROR, "none of rank 3 of 4", 3),
        (
            Ends(failures={2: lost, 3: _failure(Reason.GPU_OUT_OF_MEMORY, "full", retries=True)}),
            Reason.INTERRUPTED,
            "next plan of the ladder",
            3,
        ),
    ):
        monkeypatch.setattr(launch, "_launch", lambda *_arguments, ends=ends: (ends, None))
        with pytest.raises(StageError, match=text) as caught:
            train_on_ranks(run, NullReporter(), 2, nodes=2)
        assert (caught.value.reason, caught.value.rank) == (reason, rank)


def test_ranks_that_were_stopped_are_interrupted() -> None:
    failures = {
        0: _failure(Reason.INTERRUPTED, "state at step 4 is saved"),
        1: _failure(Reason.INTERRUPTED, "stopped"),
    }
    found = failure_of(Ends(failures=failures), 2)
    assert (found.reason, found.message) == (Reason.INTERRUPTED, "state at step 4 is saved")


def test_more_processes_than_gpus_are_refused_before_any_starts(workspace: Path) -> None:
    run = run_spec(workspace, workspace / "output", "cuda", **SETTINGS)
    if torch.cuda.device_count() >= 64:
        pytest.skip("this machine has as many GPUs")
    with pytest.raises(StageError, match="64 processes must have a GPU each") as caught:
        train_on_ranks(run, NullReporter(), 64)
    assert caught.value.reason is Reason.GPU_NOT_VISIBLE
