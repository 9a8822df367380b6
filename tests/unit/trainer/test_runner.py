from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import __main__ as command_line
from finetune_trainer import runner
from finetune_trainer.contract.exit_codes import ExitCode
from finetune_trainer.contract.rank_layout import RankLayout
from finetune_trainer.contract.result import CompletedResult, PublicationResult, Result, StageResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.telemetry.logs import LogTail
from finetune_trainer.telemetry.redaction import Redactor
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.termination import Terminated, raise_on_termination
from finetune_trainer.workspace.layout import WorkspaceLayout
from finetune_trainer.workspace.timeline import read_timeline

from tests.support.results import MERGE, PREPARE, TRAIN

REDACT = Redactor(["hf_secret_token"])


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the outcomes of fake stages by command, because real stages take minutes."""
    outcomes: dict[str, Any] = {"prepare": StageResult(prepare=PREPARE), "train": TRAIN, "merge": MERGE}

    def load(command: str, step: str = "") -> runner.StageFunction:
        def stage(run: RunSpec, progress: Any) -> Any:
            del run, progress
            found = outcomes[step or command]
            if isinstance(found, BaseException):
                raise found
            return found

        return stage

    monkeypatch.setattr(runner, "load_stage", load)
    return outcomes


@pytest.fixture
def termination_handlers() -> Iterator[None]:
    """Restore the process's signal handlers and the runner's memory of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    raise_on_termination()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("command", runner.STAGES)
def test_every_stage_adds_the_member_of_its_name(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], command: str
) -> None:
    assert set(stages) == set(runner.STAGES)
    outcome = runner.stage_outcome(command, make_run(), NullReporter(), REDACT)
    assert outcome.members.model_fields_set == {command}


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [
        (StageError(Reason.INVALID_DATASET, "bad hf_secret_token"), Reason.INVALID_DATASET, "bad [redacted]"),
        (Terminated("SIGTERM"), Reason.INTERRUPTED, "stopped by SIGTERM"),
        (KeyError("x"), Reason.INTERNAL_ERROR, "KeyError: 'x'"),
        (SystemExit(3), Reason.INTERNAL_ERROR, "SystemExit: 3"),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.WORKSPACE_FULL, "a larger workspace.size"),
    ],
)
def test_every_failure_has_a_reason_and_a_redacted_message(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], error: BaseException, reason: Reason, said: str
) -> None:
    stages["train"] = error
    run = make_run()
    run.workspace.path.mkdir()
    outcome = runner.stage_outcome("train", run, NullReporter(), REDACT)
    assert outcome.reason is reason
    assert said in outcome.message


def test_a_failure_names_the_rank_that_failed_first(
    make_run: Callable[..., RunSpec], stages: dict[str, Any]
) -> None:
    stages["train"] = StageError(Reason.GPU_OUT_OF_MEMORY, "full", 3)
    assert runner.stage_outcome("train", make_run(), NullReporter(), REDACT).rank == 3
    stages["train"] = KeyError("x")
    assert runner.stage_outcome("train", make_run(), NullReporter(), REDACT).rank is None


def test_only_train_runs_on_several_processes(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RankLayout] = []

    def load(ranks: RankLayout) -> Any:
        asked.append(ranks)
        return lambda _run, _progress: stages["train"]

    monkeypatch.setattr(runner, "load_ranks", load)
    for command in runner.STAGES:
        assert runner.stage_outcome(command, make_run(), NullReporter(), REDACT, processes=3).reason is None
    assert asked == [RankLayout(nodes=1, per_node=3)]
    runner.stage_outcome("train", make_run(), NullReporter(), REDACT)
    assert asked == [RankLayout(nodes=1, per_node=3)]


@pytest.mark.parametrize("command", runner.STAGES)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_host_without_memory_is_a_reason_with_its_remedy(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], command: str, error: BaseException
) -> None:
    """An operator before contract 1.6 expects this reason only from the kubelet."""
    stages[command] = error
    run = make_run().model_copy(update={"version": "1.6"})
    outcome = runner.stage_outcome(command, run, NullReporter(), REDACT)
    assert (outcome.reason, outcome.code) == (Reason.HOST_OUT_OF_MEMORY, ExitCode.PERMANENT)
    assert f"raise resources.{command}.memory" in outcome.message
    assert type(error).__name__ in outcome.message
    earlier = runner.stage_outcome(command, run.model_copy(update={"version": "1.5"}), NullReporter(), REDACT)
    assert (earlier.reason, earlier.code) == (Reason.INTERNAL_ERROR, ExitCode.RETRYABLE)


@pytest.mark.usefixtures("termination_handlers")
def test_signals_while_a_result_is_written_cost_neither_result_nor_exit_code(
    make_run: Callable[..., RunSpec],
    stages: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """They arrive while the stage's progress is closed."""
    seen = []

    def signalled(*_arguments: Any, **_settings: Any) -> None:
        seen.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    stages["train"] = StageError(Reason.INTERRUPTED, "stopped")
    monkeypatch.setattr(runner.Reporter, "close", signalled)  # type: ignore[attr-defined]  # the module's own import
    raise_on_termination()
    run = make_run()
    run.workspace.path.mkdir()
    message = tmp_path / "message"
    code, _ = runner.run_stage("train", run, REDACT, LogTail(), message)
    assert code is ExitCode.INTERRUPTED
    assert seen == [True]
    assert json.loads(message.read_bytes())["reason"] == "Interrupted"


@pytest.mark.usefixtures("termination_handlers", "stages")
def test_a_signal_before_the_stage_begins_interrupts_it(
    make_run: Callable[..., RunSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = runner.add_log_file  # type: ignore[attr-defined]  # the module's own import

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(runner, "add_log_file", signalled)
    raise_on_termination()
    run = make_run()
    run.workspace.path.mkdir()
    code, result = runner.run_stage("train", run, REDACT, LogTail(), None)
    assert code is ExitCode.INTERRUPTED
    assert "stopped by SIGTERM" in str(result.message)


@pytest.mark.usefixtures("termination_handlers")
def test_a_signal_before_the_run_spec_is_read_ends_as_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command_line, "limit_threads", lambda _count: os.kill(os.getpid(), signal.SIGTERM))
    assert command_line.main(["train", "--run", str(tmp_path / "none")]) is ExitCode.INTERRUPTED


@pytest.mark.usefixtures("termination_handlers")
def test_a_signal_in_a_stage_interrupts_it(
    make_run: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(*_arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("must not be reached")

    monkeypatch.setattr(runner, "load_stage", lambda _command, _step: stage)
    raise_on_termination()
    outcome = runner.stage_outcome("train", make_run(), NullReporter(), REDACT)
    assert outcome.reason is Reason.INTERRUPTED
    assert "SIGINT" in outcome.message


@pytest.mark.usefixtures("termination_handlers")
def test_a_signal_that_a_library_swallows_while_it_is_imported_interrupts_the_stage(
    make_run: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_command: str, _step: str) -> Any:
        with suppress(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        return lambda *_arguments: StageResult(prepare=PREPARE)

    monkeypatch.setattr(runner, "load_stage", load)
    raise_on_termination()
    outcome = runner.stage_outcome("prepare", make_run(), NullReporter(), REDACT)
    assert (outcome.reason, outcome.code) == (Reason.INTERRUPTED, ExitCode.INTERRUPTED)


def results(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_stages_that_prepare_reports_as_finished_are_not_run(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stages["prepare"] = StageResult(prepare=PREPARE, completed=CompletedResult(train=TRAIN))
    stages["train"] = AssertionError("must not run")
    assert runner.run_all_stages(make_run(), REDACT, LogTail()) is ExitCode.SUCCEEDED
    found = results(capsys.readouterr().out)
    assert [result["stage"] for result in found] == ["Prepare", "Train", "Merge"]
    assert found[1] == {"stage": "Train", "outcome": "Succeeded", "train": TRAIN.document()}


def test_the_first_failure_ends_the_run(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stages["train"] = StageError(Reason.NON_FINITE_LOSS, "m")
    assert runner.run_all_stages(make_run(), REDACT, LogTail()) is ExitCode.PERMANENT
    assert [result["outcome"] for result in results(capsys.readouterr().out)] == ["Succeeded", "Failed"]


def test_a_rejected_run_spec_leaves_a_result_without_an_identity(tmp_path: Path) -> None:
    path = tmp_path / "termination-message"
    error = StageError(Reason.INVALID_RUN_SPEC, "bad hf_secret_token")
    assert runner.reject_run_spec("train", error, REDACT, LogTail(), path) is ExitCode.PERMANENT
    result = json.loads(path.read_bytes())
    assert (result["uid"], result["stage"], result["message"]) == ("", "Train", "bad [redacted]")


@pytest.mark.parametrize(
    ("command", "step"), [("prepare", "Publish"), ("merge", "Probe"), ("train", "Probe"), ("prepare", "x")]
)
def test_a_step_of_another_stage_is_rejected(
    make_run: Callable[..., RunSpec], command: str, step: str
) -> None:
    outcome = runner.stage_outcome(command, make_run(), NullReporter(), REDACT, step)
    assert outcome.reason is Reason.INVALID_RUN_SPEC
    assert step in outcome.message


@pytest.mark.parametrize("failing", [None, "Probe", "Publish"])
def test_a_local_run_tries_destinations_first_and_fills_them_last(
    make_run: Callable[..., RunSpec],
    run_document: dict[str, Any],
    stages: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    failing: str | None,
) -> None:
    copies = [{"name": "claim", "kind": "Directory", "path": str(tmp_path / "claim"), "uri": "pvc://a/b"}]
    run = make_run(output={**run_document["output"], "destinations": copies})
    published = MERGE.model_copy(update={"publications": (PublicationResult(name="claim", uri="pvc://a/b"),)})
    stages |= {"Probe": StageResult(), "Publish": published}
    if failing is not None:
        stages[failing] = StageError(Reason.DESTINATION_ACCESS_DENIED, "no")
    code = runner.run_all_stages(run, REDACT, LogTail())
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    if failing == "Probe":
        assert [line["stage"] for line in printed] == ["Prepare"]
    else:
        assert [line["stage"] for line in printed] == ["Prepare", "Train", "Merge"]
    if failing is None:
        assert printed[-1]["merge"]["publications"] == [{"name": "claim", "uri": "pvc://a/b"}]
        assert code is ExitCode.SUCCEEDED
    else:
        assert printed[-1]["reason"] == "DestinationAccessDenied"
        assert code is ExitCode.PERMANENT


def test_the_workspace_remembers_every_attempt_with_its_times_and_outcome(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], tmp_path: Path
) -> None:
    layout = WorkspaceLayout(tmp_path / "workspace")
    layout.root.mkdir()
    stages["train"] = StageError(Reason.NON_FINITE_LOSS, "x")
    for command in ("prepare", "train"):
        runner.run_stage(command, make_run(), REDACT, LogTail(), None)
    entries = read_timeline(layout)
    assert [(entry["stage"], entry["outcome"], entry["reason"]) for entry in entries] == [
        ("Prepare", "Succeeded", None),
        ("Train", "Failed", "NonFiniteLoss"),
    ]
    assert all(entry["startTime"] <= entry["completionTime"] for entry in entries)


def test_a_report_is_written_after_the_result_and_its_failure_changes_nothing(
    make_run: Callable[..., RunSpec], stages: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "workspace").mkdir()
    message = tmp_path / "message"
    stages["train"] = StageError(Reason.INVALID_DATASET, "bad hf_secret_token")
    seen = []

    def write(run: RunSpec, layout: WorkspaceLayout, result: Result) -> None:
        del run
        seen.append((layout.root, result.message, message.read_text() != ""))
        raise KeyError("x")

    code, result = runner.run_stage("train", make_run(), REDACT, LogTail(), message, write)
    assert seen == [(tmp_path / "workspace", "bad [redacted]", True)]
    assert (code, result.reason) == (ExitCode.PERMANENT, "InvalidDataset")
