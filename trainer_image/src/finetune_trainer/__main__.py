"""Command line of the trainer: `python -m finetune_trainer prepare|train|merge|run|masks|compile`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from finetune_trainer.contract.exit_codes import ExitCode
from finetune_trainer.contract.result import Outcome, encode_result, result_document
from finetune_trainer.contract.run_spec import RunSpec, read_run_spec
from finetune_trainer.contract.timestamps import rfc3339, utc_now
from finetune_trainer.cpu import limit_threads, usable_processors
from finetune_trainer.errors import StageError
from finetune_trainer.kernels.cache import compile_kernels, use_shipped_kernels
from finetune_trainer.runner import STAGES, peak_memory_bytes, raise_on_termination, run_stage
from finetune_trainer.telemetry.logs import LogTail, add_log_file, configure_logging
from finetune_trainer.telemetry.redaction import Redactor, secrets_of
from finetune_trainer.telemetry.reporter import Identity, Reporter
from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger("finetune_trainer")
_DEFAULT_TERMINATION_MESSAGE = Path("/dev/termination-log")


def main(arguments: list[str]) -> ExitCode:
    """Run the command and return the exit code; results and reasons are written before it returns."""
    options = _parser().parse_args(arguments)
    raise_on_termination()
    limit_threads(usable_processors())
    if options.command == "compile":
        compile_kernels(options.folder)
        return ExitCode.SUCCEEDED
    use_shipped_kernels(os.environ)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if options.command == "masks":
        from finetune_trainer.data.dataset.listing import list_masks  # noqa: PLC0415 -- brings in transformers

        listed: ExitCode = list_masks(
            options.tokenizer, options.dataset, options.maximum_length, options.reasoning, options.format
        )
        return listed
    redact = Redactor([])
    tail = configure_logging(redact)
    try:
        run = read_run_spec(options.run)
    except StageError as error:
        return _refuse_run_spec(options, error, redact, tail)
    redact = Redactor(secrets_of(run, os.environ))
    tail = configure_logging(redact)
    if options.command != "run":
        document = _stage(options.command, run, redact, tail, options.termination_message)
        code = ExitCode(document.pop("code"))
        if getattr(options, "rows", False):
            from finetune_trainer.stages.prepare.stage import print_proven_rows  # noqa: PLC0415 -- brings in transformers

            print_proven_rows(run)
        return code
    return _all_stages(run, redact, tail)


def _stage(
    command: str, run: RunSpec, redact: Redactor, tail: LogTail, termination_message: Path | None
) -> dict[str, Any]:
    """Run one stage, write its result and its last line; return the result with its exit `code`."""
    started = utc_now()
    layout = WorkspaceLayout(run.workspace.path)
    identity = Identity(run.job.uid, STAGES[command], run.attempt)
    try:
        add_log_file(layout.log(command, run.attempt), redact)
    except OSError as error:
        _log.warning("the log cannot be kept in the workspace: %s", error)
    progress = Reporter(
        identity, progress_path=layout.progress, host=run.telemetry.host, port=run.telemetry.port
    )
    progress.update("Starting", 0, None)
    outcome = run_stage(command, run, progress, redact)
    if outcome.reason is None:
        progress.update("Finished", 1, 1)
    progress.close()
    document = result_document(
        identity,
        outcome,
        started=started,
        completed=utc_now(),
        peak_memory_bytes=peak_memory_bytes(),
        log_tail=list(tail.lines),
    )
    _write_termination_message(document, termination_message, redact)
    return {**document, "code": outcome.code}


def _all_stages(run: RunSpec, redact: Redactor, tail: LogTail) -> ExitCode:
    """Run the three stages in this process, skip those that are proven done, print each result."""
    done: dict[str, Any] = {}
    for command in STAGES:
        if command in done:
            document = {"stage": STAGES[command], "outcome": "Succeeded", command: done[command]}
            code = ExitCode.SUCCEEDED
        else:
            document = _stage(command, run, redact, tail, None)
            code = ExitCode(document.pop("code"))
            done.update(document.get("completed", {}))
        print(redact(json.dumps(document, ensure_ascii=False)), flush=True)
        if code is not ExitCode.SUCCEEDED:
            return code
    return ExitCode.SUCCEEDED


def _refuse_run_spec(
    options: argparse.Namespace, error: StageError, redact: Redactor, tail: LogTail
) -> ExitCode:
    _log.error("%s: %s", error.reason, error.message)
    outcome = Outcome({}, error.reason, redact(error.message))
    now = utc_now()
    # The uid and attempt are not known: the run spec is what could not be read.
    document = result_document(
        Identity("", STAGES.get(options.command, "Prepare"), 0),
        outcome,
        started=now,
        completed=now,
        peak_memory_bytes=None,
        log_tail=list(tail.lines),
    )
    if options.command != "run":
        _write_termination_message(document, options.termination_message, redact)
    return outcome.code


def _write_termination_message(document: dict[str, Any], path: Path | None, redact: Redactor) -> None:
    """Write the result where the kubelet reads it; outside a pod the default path does not exist."""
    if path is None or (path == _DEFAULT_TERMINATION_MESSAGE and not path.exists()):
        return
    text = encode_result(json.loads(redact(json.dumps(document, ensure_ascii=False))))
    try:
        path.write_bytes(text)
    except OSError:
        _log.exception("the result cannot be written to %s", path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune-trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "prepare": "fetch data and model, prove the masks, quantise (no GPU needed)",
        "train": "train the adapter on the quantised model",
        "merge": "merge, verify and publish",
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
                default=_DEFAULT_TERMINATION_MESSAGE,
                help="file for the result",
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
    masks.add_argument("--format", choices=formats, default="Auto", help="what columns rows have")
    masks.add_argument("--maximum-length", type=int, default=2048, help="tokens; default %(default)s")
    masks.add_argument("--reasoning", choices=("Keep", "Strip"), default="Keep")
    compiling = commands.add_parser("compile", help="compile the kernels that an image carries")
    compiling.add_argument("folder", type=Path, help="new folder for the machine code")
    return parser


def _leave() -> None:
    """Run, flush and go at once: tearing the interpreter down would hold the pod for seconds."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    code = main(sys.argv[1:])
    names = {ExitCode.SUCCEEDED: "Succeeded", ExitCode.INTERRUPTED: "Interrupted"}
    logging.shutdown()
    sys.stdout.flush()
    if command not in {"masks", "compile"}:
        outcome = names.get(code, "Failed")
        line = f"finetune-trainer: stage={command} outcome={outcome} code={int(code)} at={rfc3339(utc_now())}"
        print(line, file=sys.stderr)
    sys.stderr.flush()
    os._exit(int(code))


if __name__ == "__main__":
    _leave()
