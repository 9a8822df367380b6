"""The options of `finetune plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Check if a FineTuneJob fits before it is applied, and print the GPU, the values and the reasons. If it does
not fit, print a change that helps. The model's shape comes from its config.json alone. Without --gpu, --gpu-memory, --nodes
or --profiles, the command reads the GPUs of the cluster's nodes (kubectl get nodes). Exit codes: 0 if the job fits, 2 if it
does not fit, 64 if the request is wrong."""


def claim(text: str) -> tuple[str, Path]:
    """Parse CLAIM=FOLDER."""
    name, separator, folder = text.partition("=")
    if not separator or not name or not folder:
        raise argparse.ArgumentTypeError(f"must be CLAIM=FOLDER, found {text!r}")
    return name, Path(folder)


def add_volume_options(parser: argparse.ArgumentParser) -> None:
    """Options that map PersistentVolumeClaims to folders."""
    parser.add_argument(
        "--volumes",
        type=Path,
        default=Path(".finetune/volumes"),
        help="a claim NAME is the folder VOLUMES/NAME (default: %(default)s)",
    )
    parser.add_argument(
        "--volume",
        type=claim,
        action="append",
        default=[],
        metavar="CLAIM=FOLDER",
        help="folder of one claim",
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options of `finetune plan`."""
    job = parser.add_argument_group("the job")
    job.add_argument(
        "file",
        type=Path,
        nargs="?",
        help="YAML with one FineTuneJob; without a file, a job with default values",
    )
    job.add_argument("-f", "--filename", type=Path, help="the same file, as an option like in kubectl")
    job.add_argument("--name", help="name of the FineTuneJob, if the file has several")
    job.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="PATH=VALUE",
        help="another value for a field of the spec, such as training.microBatchSize=2; repeatable",
    )
    job.add_argument(
        "--longest-row",
        type=int,
        metavar="TOKENS",
        help="longest row of the data in tokens (default: training.maximumLength)",
    )
    job.add_argument(
        "--rows",
        type=int,
        metavar="NUMBER",
        help="training rows of the data, from which the time follows, and the learning rate if the job gives none",
    )
    job.add_argument(
        "--tokens",
        type=int,
        metavar="NUMBER",
        help="tokens of all training rows together (default: a guess from --rows and the longest row)",
    )
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model", type=Path, metavar="FOLDER", help="folder with the model's config.json, or that file"
    )
    add_volume_options(parser)
    gpus = parser.add_argument_group("the GPUs")
    gpus.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="NAME",
        help='name of a GPU, such as "NVIDIA L4"; repeatable',
    )
    gpus.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="usable memory in GiB, for a GPU that no table lists"
    )
    gpus.add_argument("--nodes", type=Path, metavar="FILE", help="output of kubectl get nodes -o json")
    gpus.add_argument("--profiles", type=Path, metavar="FILE", help="the chart's gpuProfiles")
    gpus.add_argument(
        "--pod-defaults",
        type=Path,
        metavar="FILE",
        help="the chart's trainer.podDefaults, for their node rules",
    )
    gpus.add_argument("--context", help="context of the kubeconfig from which to read the nodes")
    gpus.add_argument(
        "--allow-time-slicing",
        action="store_true",
        help="include time-sliced GPUs, like the chart's allowTimeSlicing",
    )
    stack = parser.add_argument_group("the software")
    stack.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="the chart's trainer.device; with cpu, TRAIN takes the optimizer of a CPU (default: %(default)s)",
    )
    stack.add_argument(
        "--stack", type=Path, metavar="FILE", help="another stack profile (docs/stack-profile.md)"
    )
    stack.add_argument("--calibration", type=Path, metavar="FILE", help="the chart's calibration")
    stack.add_argument(
        "--cost", type=Path, metavar="FILE", help="the chart's cost: prices and measured speeds of GPUs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (contract/plan.schema.json)")
