"""The command line: `finetune run` runs a FineTuneJob on this machine, `finetune plan` checks beforehand if it fits.

`finetune verify` checks what was published.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from finetune_operator.api.plan import Device
from finetune_operator.errors import InvalidSpecError

from finetune_cli.calibrate import DESCRIPTION as CALIBRATE
from finetune_cli.calibrate import add_calibrate_options, calibrate
from finetune_cli.errors import UsageError
from finetune_cli.logs.command import DESCRIPTION as LOGS
from finetune_cli.logs.command import add_logs_options, logs
from finetune_cli.manifests import read_manifests
from finetune_cli.plan.arguments import DESCRIPTION, add_plan_options, add_volume_options
from finetune_cli.plan.command import plan
from finetune_cli.report.command import DESCRIPTION as REPORT
from finetune_cli.report.command import add_report_options, report
from finetune_cli.run.devices import choose_device
from finetune_cli.run.local import LocalFolders, run_locally
from finetune_cli.verify import DESCRIPTION as VERIFY
from finetune_cli.verify import add_verify_options, run_verify

_PRINTING = {"plan": plan, "calibrate": calibrate, "verify": run_verify, "logs": logs, "report": report}
"""Commands that print to standard output and return an exit code."""
EXIT_USAGE = 64
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


class _Parser(argparse.ArgumentParser):
    """A parser that exits with 64 for a wrong request, because 2 means that a plan does not fit."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, then exit."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = _Parser(prog="finetune", description="Fine-tune language models from FineTuneJob YAML.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="prepare, train and merge on this machine, without a cluster",
        description="Run the FineTuneJob of a YAML file on this machine. The same file must contain its ConfigMaps and "
        "Secrets. Each PersistentVolumeClaim is a folder. Environment variables can replace a Secret. Their names are the "
        "same as in a pod: FINETUNE_MODEL_, FINETUNE_DATASET_ or FINETUNE_VALIDATION_, followed by URL, TOKEN or the "
        "Secret's key.",
    )
    run.add_argument("file", type=Path, help="YAML with one FineTuneJob")
    run.add_argument("--name", help="name of the FineTuneJob, if the file has several")
    add_volume_options(run)
    run.add_argument(
        "--runs",
        type=Path,
        default=Path(".finetune/runs"),
        help="folder of workspaces (default: %(default)s)",
    )
    run.add_argument(
        "--device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="auto selects an NVIDIA GPU if the driver shows one, else the CPU, and prints its choice (default: %(default)s)",
    )
    plan_parser = commands.add_parser(
        "plan", help="check if a job fits, on which GPU, and why", description=DESCRIPTION
    )
    add_plan_options(plan_parser)
    calibrate_parser = commands.add_parser(
        "calibrate", help="fit the estimates to the measurements of finished runs", description=CALIBRATE
    )
    add_calibrate_options(calibrate_parser)
    verify_parser = commands.add_parser(
        "verify", help="compare published artifacts with their manifest and signature", description=VERIFY
    )
    add_verify_options(verify_parser)
    logs_parser = commands.add_parser(
        "logs", help="print the log of a stage, also long after its end", description=LOGS
    )
    add_logs_options(logs_parser)
    report_parser = commands.add_parser(
        "report", help="print the report on a job, also long after its end", description=REPORT
    )
    add_report_options(report_parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, or 64 if the request is wrong."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command in _PRINTING:
            status = _PRINTING[options.command](options, sys.stdout)
            sys.stdout.flush()
            return status
        manifests = read_manifests(options.file, options.name)
        device: Device = choose_device(options.device, sys.stderr)
        folders = LocalFolders(options.volumes.resolve(), dict(options.volume), options.runs.resolve())
        return run_locally(manifests, folders, device)
    except (UsageError, InvalidSpecError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        # The reader closed the pipe on purpose. Without this, Python prints another error when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
