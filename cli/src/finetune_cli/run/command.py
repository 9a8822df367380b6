"""`finetune run`: a FineTuneJob on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from finetune_cli.errors import UsageError
from finetune_cli.manifests import read_manifests
from finetune_cli.options import FILE, Command, volume_options
from finetune_cli.run.devices import choose_device
from finetune_cli.run.local import LocalFolders, Parallelism, run_locally
from finetune_cli.trainer import REMEDY, trainer_is_installed

DESCRIPTION = """Run the FineTuneJob of a YAML file on this machine.

The same file must contain its ConfigMaps and Secrets. Each PersistentVolumeClaim is a folder. Environment variables can
replace a Secret. Their names are the same as in a pod: FINETUNE_MODEL_, FINETUNE_DATASET_ or FINETUNE_VALIDATION_, followed
by URL, TOKEN or the Secret's key. The exit code is the trainer's."""


@click.command(
    "run",
    cls=Command,
    help=DESCRIPTION,
    examples=(
        ("finetune run examples/quickstart.yaml", "Prepare, train and merge; the same command resumes."),
        ("finetune run job.yaml --volume models=/data/models --device cuda", "Name the folder of a claim."),
        ("finetune run job.yaml --processes 2", "Train with two processes; any number of them resumes."),
    ),
)
@click.argument("file", type=FILE)
@click.option("--name", help="Name of the FineTuneJob, if the file has several.")
@volume_options
@click.option(
    "--runs",
    type=FILE,
    default=Path(".finetune/runs"),
    show_default=True,
    metavar="FOLDER",
    help="Folder of workspaces.",
)
@click.option(
    "--device",
    type=click.Choice(("auto", "cuda", "cpu")),
    default="auto",
    show_default=True,
    help="auto selects an NVIDIA GPU if the driver shows one, else the CPU, and prints its choice.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    metavar="NUMBER",
    help="Processes that share the rows of each training step. With cuda, each needs a GPU. By default as many as resources.gpus "
    "of the job; on a CPU, one.",
)
@click.option(
    "--parallelism",
    type=click.Choice(["DataParallel", "FullyShard"]),
    help="DataParallel gives each process the whole model, FullyShard a part of its frozen weights. By default that of "
    "training.parallelism, or DataParallel.",
)
def command(
    file: Path,
    name: str | None,
    volumes: Path,
    volume: tuple[tuple[str, Path], ...],
    runs: Path,
    device: Literal["auto", "cuda", "cpu"],
    processes: int | None,
    parallelism: Parallelism | None,
) -> int:
    """Run a job and return the trainer's exit code."""
    if not trainer_is_installed():
        raise UsageError(REMEDY)
    manifests = read_manifests(file, name)
    chosen = choose_device(device, sys.stderr)
    folders = LocalFolders(volumes.resolve(), dict(volume), runs.resolve())
    return run_locally(manifests, folders, chosen, processes, parallelism)
