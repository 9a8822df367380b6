"""Command line of the trainer: `python -m finetune_trainer prepare|train|merge|run|masks|kept|trace|compile`."""

from __future__ import annotations

from finetune_trainer.termination import TERMINATION, Terminated, raise_on_termination

if __name__ == "__main__":
    # The other imports take longer than a second on a busy node.
    TERMINATION.begin()

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract.exit_codes import TERMINATION_MESSAGE, ExitCode, exit_code
from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.cpu import available_cpus, limit_threads
from finetune_trainer.errors import StageError
from finetune_trainer.kernels.cache import compile_kernels, use_shipped_kernels

if TYPE_CHECKING:
    from finetune_trainer.contract.result import Result
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.telemetry.redaction import Redactor
    from finetune_trainer.workspace.layout import WorkspaceLayout

MOST_PROCESSES = 64


def main(arguments: list[str]) -> ExitCode:
    """Run the command and return the exit code. Results and reasons are written before it returns."""
    try:
        raise_on_termination()
        return _run(_parser().parse_args(arguments))
    except Terminated:
        # The signal came before the stage began, so there is nothing to save and no result.
        return ExitCode.INTERRUPTED
    except Exception:
        if TERMINATION.received is None:
            raise
        # A library turned the exception into one of its own while it was imported.
        return ExitCode.INTERRUPTED


def _run(options: argparse.Namespace) -> ExitCode:
    limit_threads(available_cpus())
    if options.command in {"compile", "kept", "trace"}:
        return _run_without_weights(options)
    use_shipped_kernels(os.environ)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if options.command == "masks":
        from finetune_trainer.data.dataset.listing import list_masks  # noqa: PLC0415 -- brings in transformers

        listed: ExitCode = list_masks(
            options.tokenizer,
            options.dataset,
            options.maximum_length,
            options.reasoning,
            options.format,
            options.control_tokens,
        )
        return listed
    # These take most of a second, in which a signal must be obeyed already.
    from finetune_trainer.contract.destinations import STEP_VARIABLE  # noqa: PLC0415 -- see above
    from finetune_trainer.contract.run_spec import read_run_spec  # noqa: PLC0415 -- see above
    from finetune_trainer.runner import reject_run_spec, run_all_stages, run_stage  # noqa: PLC0415 -- see above
    from finetune_trainer.telemetry.logs import configure_logging  # noqa: PLC0415 -- see above
    from finetune_trainer.telemetry.redaction import Redactor, secrets_of  # noqa: PLC0415 -- see above

    redact = Redactor([])
    tail = configure_logging(redact)
    termination_message = None if options.command == "run" else options.termination_message
    try:
        run = read_run_spec(options.run)
    except StageError as error:
        return reject_run_spec(options.command, error, redact, tail, termination_message)
    redact = Redactor(secrets_of(run, os.environ))
    tail = configure_logging(redact)
    if options.command == "run":
        return run_all_stages(run, redact, tail, _write_report, options.processes)
    step = os.environ.get(STEP_VARIABLE, "")
    processes = getattr(options, "processes", 1)
    code, _result = run_stage(
        options.command, run, redact, tail, termination_message, _write_report, step, processes
    )
    if getattr(options, "rows", False):
        return _print_proven_rows(run, code, redact)
    return code


def _run_without_weights(options: argparse.Namespace) -> ExitCode:
    if options.command == "compile":
        compile_kernels(options.folder)
        return ExitCode.SUCCEEDED
    if options.command == "trace":
        from finetune_trainer.trace.command import answer  # noqa: PLC0415 -- brings in torch

        return ExitCode.SUCCEEDED if answer(sys.stdin, sys.stdout) else ExitCode.PERMANENT
    from finetune_trainer.workspace.kept import print_kept  # noqa: PLC0415 -- the other commands need none of it

    printed = print_kept(options.folder, options.wanted, options.attempt, sys.stdout.buffer)
    return ExitCode.SUCCEEDED if printed else ExitCode.PERMANENT


def _write_report(run: RunSpec, layout: WorkspaceLayout, result: Result) -> None:
    """Write the page on the job into the workspace. The message of a failure in `result` is redacted already."""
    from finetune_trainer.report.job_document import Failure  # noqa: PLC0415 -- only a finished stage needs it
    from finetune_trainer.report.job_page import write_job_report  # noqa: PLC0415 -- see above

    reason = result.reason
    failure = None if reason is None else Failure(result.stage, reason, result.message or "")
    document = result.document()
    members = {**document, **document.get("completed", {})}
    known = {str(stage): members[stage] for stage in ("prepare", "train", "merge") if stage in members}
    write_job_report(run, layout, failure=failure, known=known)


def _print_proven_rows(run: RunSpec, code: ExitCode, redact: Redactor) -> ExitCode:
    """Print the rows of a finished PREPARE and return its exit code, or the reason's if it finds a failure here."""
    from finetune_trainer.stages.prepare.stage import print_proven_rows  # noqa: PLC0415 -- brings in transformers

    try:
        print_proven_rows(run)
    except StageError as error:
        # The stage has already named its own failure.
        if code is ExitCode.SUCCEEDED:
            print(redact(f"{error.reason}: {error.message}"), file=sys.stderr)
            return exit_code(error.reason)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune-trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "prepare": "fetch data and model, prove the masks, quantize (needs no GPU)",
        "train": "train the adapter on the quantized model",
        "merge": "merge, verify and publish",
        "report": "copy the report of a job that has ended to its destinations",
        "run": "all three stages in this process",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--run", type=Path, default=Path("/etc/finetune/run.json"), help="run spec (JSON)"
        )
        if name != "run":
            command.add_argument(
                "--termination-message",
                type=Path,
                default=TERMINATION_MESSAGE,
                help="file for the result",
            )
        if name in {"train", "run"}:
            command.add_argument(
                "--processes",
                type=_processes,
                default=1,
                help="processes of this machine that share each step of TRAIN; default %(default)s",
            )
        if name == "prepare":
            command.add_argument(
                "--rows",
                action="store_true",
                help="also print one JSON line per row: ids, labels, or the reason",
            )
    masks = commands.add_parser("masks", help="print ids and labels of a dataset for one tokenizer folder")
    masks.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with tokenizer and chat template"
    )
    masks.add_argument(
        "--dataset",
        type=Path,
        nargs="+",
        required=True,
        help="files of rows: JSONL, JSON, Parquet or CSV, plain or compressed",
    )
    formats = ("Auto", "Messages", "PromptCompletion", "Alpaca", "ShareGPT")
    masks.add_argument("--format", choices=formats, default="Auto", help="format of the rows")
    masks.add_argument("--maximum-length", type=int, default=2048, help="tokens; default %(default)s")
    masks.add_argument("--reasoning", choices=("Keep", "Strip"), default="Keep")
    masks.add_argument("--control-tokens", choices=("Reject", "Escape"), default="Reject")
    kept = commands.add_parser(
        "kept", help="print a log or the report that a workspace keeps, after a line of JSON"
    )
    kept.add_argument("folder", type=Path, help="workspace, or folder with the published report")
    kept.add_argument(
        "wanted",
        choices=("html", "json", "prepare", "train", "merge"),
        help="form of the report, or stage whose log is wanted",
    )
    kept.add_argument("--attempt", type=int, help="attempt of the log; default: the newest")
    text = (
        "memory that a model needs on a GPU: reads a request from standard input, and prints one line of JSON"
    )
    commands.add_parser("trace", help=text, description=text)
    compiling = commands.add_parser("compile", help="compile the kernels that an image ships")
    compiling.add_argument("folder", type=Path, help="new folder for the machine code")
    return parser


def _processes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {MOST_PROCESSES}, found {text!r}")
    return int(text)


def _run_and_exit() -> None:
    """Run, flush and exit at once: shutting the interpreter down would delay the pod's end by seconds."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    code = main(sys.argv[1:])
    names = {ExitCode.SUCCEEDED: "Succeeded", ExitCode.INTERRUPTED: "Interrupted"}
    logging.shutdown()
    sys.stdout.flush()
    if command not in {"masks", "compile", "kept", "trace"}:
        outcome = names.get(code, "Failed")
        line = f"finetune-trainer: stage={command} outcome={outcome} code={int(code)} at={rfc3339(utc_now())}"
        print(line, file=sys.stderr)
    sys.stderr.flush()
    os._exit(int(code))


if __name__ == "__main__":
    _run_and_exit()
