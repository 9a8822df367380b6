"""Runs stages: turns every failure into an outcome with a reason, and writes the result.

`load_stage` names the stages' functions as text and imports them late, so that this module starts in milliseconds.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import resource
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetune_trainer.contract.bounds import readable_reason, within_contract
from finetune_trainer.contract.destinations import PROBE, PUBLISH, REPORT, STEP_VARIABLE
from finetune_trainer.contract.exit_codes import TERMINATION_MESSAGE, ExitCode
from finetune_trainer.contract.identity import Identity
from finetune_trainer.contract.node import is_first_node
from finetune_trainer.contract.outcome import Outcome, make_result
from finetune_trainer.contract.rank_layout import RankLayout
from finetune_trainer.contract.result import MergeResult, Result, StageResult
from finetune_trainer.contract.run_spec import minor_version
from finetune_trainer.contract.termination_message import encode_result
from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.host_memory import is_host_out_of_memory
from finetune_trainer.telemetry.logs import LogTail, add_log_file
from finetune_trainer.telemetry.reporter import Reporter
from finetune_trainer.termination import TERMINATION, Terminated
from finetune_trainer.workspace.disk_space import is_full, says_disk_full
from finetune_trainer.workspace.kept_logs import forget_old_logs
from finetune_trainer.workspace.layout import WorkspaceLayout
from finetune_trainer.workspace.timeline import begun, ended, read_timeline, write_timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.telemetry.redaction import Redactor
    from finetune_trainer.workspace.timeline import Entry

_log = logging.getLogger(__name__)

STAGES: Mapping[str, str] = {"prepare": "Prepare", "train": "Train", "merge": "Merge"}
_FUNCTIONS = {
    "prepare": ("finetune_trainer.proof.stage", "prepare"),
    "train": ("finetune_trainer.stages.train.stage", "train"),
    "merge": ("finetune_trainer.stages.merge.stage", "merge"),
    PROBE.lower(): ("finetune_trainer.stages.publish.stage", "probe"),
    PUBLISH.lower(): ("finetune_trainer.stages.publish.stage", "publish"),
    REPORT.lower(): ("finetune_trainer.stages.publish.report", "publish_report"),
}
_ON_RANKS = ("finetune_trainer.stages.train.ranks.launch", "train_on_ranks")
_STEP_STAGES = {PROBE: "prepare", PUBLISH: "merge", REPORT: "report"}
"""The commands of the steps that hold credentials of destinations."""
_NAMES = {**STAGES, "report": "Report"}


class StageFunction(Protocol):
    """Does a stage's work and returns its part of the result; PREPARE may add the results of finished stages."""

    def __call__(self, run: RunSpec, progress: Reporter) -> StageResult | TrainResult | MergeResult:
        """Raise StageError for a failure that has a reason."""


class ReportWriter(Protocol):
    """Writes the report on the job after a stage has ended."""

    def __call__(self, run: RunSpec, layout: WorkspaceLayout, result: Result) -> None:
        """May raise any error, which is logged."""


def load_stage(command: str, step: str = "") -> StageFunction:
    """Import the function of a stage, or of a step of it. The import is late: a stage's loads torch, which takes seconds."""
    if (step or command == "report") and _STEP_STAGES.get(step) != command:
        raise StageError(
            Reason.INVALID_RUN_SPEC,
            f"{STEP_VARIABLE} must be Probe for PREPARE, Publish for MERGE or Report for REPORT, found {step!r} for "
            f"{command.upper()}",
        )
    if not step:
        from finetune_trainer.model.eager_bitsandbytes import import_eagerly  # noqa: PLC0415 -- it loads torch, too

        import_eagerly()
    found: StageFunction = _function(_FUNCTIONS[step.lower() or command])
    return found


def load_ranks(ranks: RankLayout) -> StageFunction:
    """Import the function of TRAIN on several processes of this node, and perhaps of others."""
    return functools.partial(_function(_ON_RANKS), processes=ranks.per_node, nodes=ranks.nodes)


def _function(names: tuple[str, str]) -> Any:
    module, function = names
    return getattr(importlib.import_module(module), function)


def run_stage(
    command: str,
    run: RunSpec,
    redact: Redactor,
    tail: LogTail,
    termination_message: Path | None,
    write_report: ReportWriter | None = None,
    step: str = "",
    processes: int = 1,
) -> tuple[ExitCode, Result]:
    """Run one stage and write its result to `termination_message`; return exit code and result.

    TRAIN runs on so many `processes` of this machine, unless the run spec has `ranks`; another stage has one.

    `step` is Probe, Publish or Report for the part that needs credentials of destinations or trackers. `tail` holds the
    last log lines, which the result of a failure carries. `write_report` writes the report on the job into the workspace, whatever
    the outcome of the stage is. A step writes none: it must not read what the job has made.
    """
    TERMINATION.remember()
    started = utc_now()
    layout = WorkspaceLayout(run.workspace.path)
    identity = Identity(run.job.uid, _NAMES[command], run.attempt)
    # Of the pods of several nodes, one keeps the records of all in the workspace.
    keeps = command != "train" or is_first_node(run)
    if keeps:
        try:
            forget_old_logs(layout.logs)
            add_log_file(layout.log(step or command, run.attempt), redact)
        except OSError as error:
            _log.warning("the log cannot be kept in the workspace: %s", error)
    progress = Reporter(
        identity,
        progress_path=layout.progress if keeps else None,
        host=run.telemetry.host,
        port=run.telemetry.port,
    )
    progress.update("Starting", 0, None)

    def begin(entries: list[Entry]) -> list[Entry]:
        return begun(entries, identity.stage, identity.attempt, rfc3339(started))

    if not step and keeps:
        _remember(layout, begin)
    outcome = stage_outcome(command, run, progress, redact, step, processes)
    if outcome.reason is None:
        progress.update("Finished", 1, 1)
    progress.close()
    result = make_result(
        identity,
        outcome,
        started=started,
        completed=utc_now(),
        peak_memory_bytes=peak_memory_bytes(),
        log_tail=list(tail.lines),
    )
    write_termination_message(result, termination_message, redact)
    # The result is safe by now: a report is worth neither its loss nor a delay of it.
    end = {"completionTime": result.completion_time, "outcome": result.outcome, "reason": result.reason}
    if step == PROBE and outcome.reason is not None:
        # The stage itself does not begin then.
        _remember(layout, begin)
    if keeps and (not step or (outcome.reason is not None and step != REPORT)):
        _remember(layout, lambda entries: ended(entries, identity.stage, identity.attempt, end))
    if write_report is not None and keeps and not step and layout.root.is_dir():
        try:
            write_report(run, layout, result)
        except Exception as error:  # noqa: BLE001 -- a report never changes the outcome of a stage
            _log.warning("the report on the job cannot be written: %s: %s", type(error).__name__, error)
    return outcome.code, result


def _remember(layout: WorkspaceLayout, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Change the timeline in the workspace; one that cannot be written ends nothing."""
    if not layout.root.is_dir():
        return
    try:
        write_timeline(layout, change(read_timeline(layout)))
    except OSError as error:
        _log.warning("the workspace cannot keep the times of the stage: %s", error)


def run_all_stages(
    run: RunSpec,
    redact: Redactor,
    tail: LogTail,
    write_report: ReportWriter | None = None,
    processes: int = 1,
) -> ExitCode:
    """Run the three stages in this process, TRAIN on `processes`, and print each result as a line of JSON.

    Stages that PREPARE proves to be finished are skipped. The first stage that does not succeed ends the run.
    """
    done: dict[str, Any] = {}
    for command in STAGES:
        if command in done:
            document = {"stage": STAGES[command], "outcome": "Succeeded", command: done[command]}
            code = ExitCode.SUCCEEDED
        else:
            code, result = _run_with_steps(command, run, redact, tail, write_report, processes)
            document = result.document()
            done.update(document.get("completed", {}))
        print(redact(json.dumps(document, ensure_ascii=False)), flush=True)
        if code is not ExitCode.SUCCEEDED:
            return code
    return ExitCode.SUCCEEDED


def _run_with_steps(
    command: str,
    run: RunSpec,
    redact: Redactor,
    tail: LogTail,
    write_report: ReportWriter | None,
    processes: int,
) -> tuple[ExitCode, Result]:
    """Run a stage with the step before or after it that needs the credentials of destinations or trackers."""
    steps = (
        {"prepare": (PROBE, ""), "merge": ("", PUBLISH)}
        if run.output.destinations
        else {"merge": ("", PUBLISH)}
        if run.tracking
        else {}
    )
    for step in steps.get(command, ("",)):
        code, result = run_stage(command, run, redact, tail, None, write_report, step, processes)
        if code is not ExitCode.SUCCEEDED:
            break
    return code, result


def reject_run_spec(
    command: str, error: StageError, redact: Redactor, tail: LogTail, termination_message: Path | None
) -> ExitCode:
    """Write the result of a stage whose run spec cannot be read; return the exit code."""
    _log.error("%s: %s", error.reason, error.message)
    outcome = Outcome.failure(error.reason, redact(error.message))
    now = utc_now()
    # The uid and attempt are not known: the run spec is what could not be read.
    result = make_result(
        Identity("", _NAMES.get(command, "Prepare"), 0),
        outcome,
        started=now,
        completed=now,
        peak_memory_bytes=None,
        log_tail=list(tail.lines),
    )
    write_termination_message(result, termination_message, redact)
    return outcome.code


def write_termination_message(result: Result, path: Path | None, redact: Redactor) -> None:
    """Write the result to the file that the kubelet reads; outside a pod the default path does not exist."""
    if path is None or (path == TERMINATION_MESSAGE and not path.exists()):
        return
    text = encode_result(json.loads(redact(json.dumps(result.document(), ensure_ascii=False))))
    try:
        path.write_bytes(text)
    except OSError:
        _log.exception("the result cannot be written to %s", path)


def stage_outcome(
    command: str, run: RunSpec, progress: Reporter, redact: Redactor, step: str = "", processes: int = 1
) -> Outcome:
    """Run the stage's function; raises only errors of the interpreter itself.

    A failure that has no reason becomes InternalError, and its traceback goes to the log.
    """
    rank = None
    try:
        with TERMINATION.raised():
            stage = load_stage(command, step)
            ranks = run.ranks or RankLayout(nodes=1, per_node=processes)
            if command == "train" and ranks.nodes * ranks.per_node > 1:
                stage = load_ranks(ranks)
            # A library may swallow an exception that it meets while it is imported.
            TERMINATION.check()
            members = _members(stage(run, progress))
        return Outcome(within_contract(members, run.version))
    except Terminated as signal_name:
        reason, message = _interrupted(str(signal_name))
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the last handler of the process: the error becomes InternalError
        reason, message = reason_of(command, error, run)
        rank = error.rank if isinstance(error, StageError) else None
    return Outcome.failure(reason, redact(message), rank)


def reason_of(command: str, error: BaseException, run: RunSpec) -> tuple[Reason, str]:
    """Return reason and message of an error that ends a stage, and log it."""
    if TERMINATION.received is not None and not isinstance(error, StageError):
        # A library turned the exception into one of its own, for example in code in C that imports a module.
        return _interrupted(TERMINATION.received)
    if is_host_out_of_memory(error):
        return _out_of_memory(command, error, run.version)
    if isinstance(error, StageError):
        reason, message = readable_reason(error.reason, run.version), error.message
    elif says_disk_full(error) or (isinstance(error, RuntimeError) and is_full(run.workspace.path)):
        reason = Reason.WORKSPACE_FULL
        message = (
            f"the workspace must have free space, found none ({error}); "
            "create the job again with a larger workspace.size"
        )
    else:
        return _internal(error)
    _log.error("%s: %s", reason, message)
    return reason, message


def _members(result: StageResult | TrainResult | MergeResult) -> StageResult:
    if isinstance(result, TrainResult):
        return StageResult(train=result)
    return StageResult(merge=result) if isinstance(result, MergeResult) else result


def _interrupted(signal_name: str) -> tuple[Reason, str]:
    message = f"the stage was stopped by {signal_name}; run it again to continue"
    _log.warning("%s", message)
    return Reason.INTERRUPTED, message


def _out_of_memory(command: str, error: BaseException, version: str) -> tuple[Reason, str]:
    """Name a host without memory. An operator before contract 1.6 knows this reason only from the kubelet."""
    found = f"{type(error).__name__}: {error}".rstrip(": ")
    # The frames of the failed work hold its memory, and the result needs some.
    traceback.clear_frames(error.__traceback__)
    smaller = ", lower training.microBatchSize or training.maximumLength," if command == "train" else ""
    message = (
        f"{command.upper()} must get the host memory that it asks for, found none left after a peak of "
        f"{_resident_peak() >> 20} MiB ({found}); raise resources.{command}.memory{smaller} or free memory of the node"
    )
    _log.error("%s", message)
    return Reason.HOST_OUT_OF_MEMORY if minor_version(version) >= 6 else Reason.INTERNAL_ERROR, message


def _internal(error: BaseException) -> tuple[Reason, str]:
    _log.critical("unexpected failure", exc_info=error)
    return Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"


def peak_memory_bytes() -> int:
    """Return the peak of allocated CUDA memory if this process used a CUDA device, else that of resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return _resident_peak()


def _resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
