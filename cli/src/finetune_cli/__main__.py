"""Command line: `finetune run FILE` does a FineTuneJob's three stages here, without a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_operator.errors import InvalidSpecError

from finetune_cli.devices import Device, choose_device
from finetune_cli.errors import UsageError
from finetune_cli.local import LocalFolders, run_locally
from finetune_cli.manifests import read_manifests

EXIT_USAGE = 64


def _claim(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator or not name or not folder:
        raise argparse.ArgumentTypeError(f"must be CLAIM=FOLDER, found {text!r}")
    return name, Path(folder)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="finetune", description="Fine-tune language models from FineTuneJob YAML."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="prepare, train and merge on this machine, without a cluster",
        description="Run the FineTuneJob of a YAML file on this machine. ConfigMaps and Secrets that it refers to "
        "must stand in the same file; each PersistentVolumeClaim is a folder. A Secret may also be given by the environment "
        "variables that a pod would have: FINETUNE_MODEL_, FINETUNE_DATASET_ or FINETUNE_VALIDATION_ and URL, TOKEN or "
        "the Secret's key.",
    )
    run.add_argument("file", type=Path, help="YAML with one FineTuneJob")
    run.add_argument("--name", help="which FineTuneJob, if the file holds several")
    run.add_argument(
        "--volumes",
        type=Path,
        default=Path(".finetune/volumes"),
        help="claim NAME is the folder VOLUMES/NAME (default: %(default)s)",
    )
    run.add_argument(
        "--volume",
        type=_claim,
        action="append",
        default=[],
        metavar="CLAIM=FOLDER",
        help="folder of one claim",
    )
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
        help="auto takes an NVIDIA GPU where the driver shows one, else the CPU, and says so (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the trainer's exit code, or 64 when the request itself is wrong."""
    options = build_parser().parse_args(arguments)
    try:
        manifests = read_manifests(options.file, options.name)
        device: Device = choose_device(options.device, sys.stderr)
        folders = LocalFolders(options.volumes.resolve(), dict(options.volume), options.runs.resolve())
        return run_locally(manifests, folders, device)
    except (UsageError, InvalidSpecError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
