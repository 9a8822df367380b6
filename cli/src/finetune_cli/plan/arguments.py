"""The options of `finetune plan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from finetune_cli.options import FILE, volume_options

DESCRIPTION = """Check if a FineTuneJob fits before it is applied, and print the GPU, the values and the reasons.

If it does not fit, print a change that helps. The model's shape comes from its config.json alone. Without --gpu,
--gpu-memory, --nodes or --profiles, the command reads the GPUs of the cluster's nodes (kubectl get nodes).

Exit codes: 0 if the job fits, 2 if it does not fit, 64 if the request is wrong."""

EXAMPLES = (
    ("finetune plan job.yaml --model ./Mistral-7B-Instruct-v0.3", "Does the job fit a GPU of the cluster?"),
    ("finetune plan --model ./Mistral-7B-Instruct-v0.3 --gpu L4 --gpu A10G", "Which of two GPUs fits it?"),
    (
        "finetune plan job.yaml --model config.json --gpu L4 --set training.microBatchSize=2",
        "Try another value.",
    ),
    ("finetune plan job.yaml --model config.json --nodes nodes.json --json", "Plan for the nodes in a file."),
)

_OPTIONS = (
    # The job.
    click.argument("file", type=FILE, required=False),
    click.option(
        "-f",
        "--filename",
        type=FILE,
        metavar="FILE",
        help="YAML with one FineTuneJob; without a file, a job with default values.",
    ),
    click.option("--name", help="Name of the FineTuneJob, if the file has several."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="PATH=VALUE",
        help="Another value for a field of the spec, such as training.microBatchSize=2; repeatable.",
    ),
    click.option(
        "--longest-row",
        type=int,
        metavar="TOKENS",
        help="Longest row of the data in tokens (default: training.maximumLength).",
    ),
    click.option(
        "--rows",
        type=int,
        metavar="NUMBER",
        help="Training rows of the data, from which the time follows, and the learning rate if the job gives none.",
    ),
    click.option(
        "--tokens",
        type=int,
        metavar="NUMBER",
        help="Tokens of all training rows together (default: a guess from --rows and the longest row).",
    ),
    # The model.
    click.option(
        "--model", type=FILE, metavar="FOLDER", help="Folder with the model's config.json, or that file."
    ),
    click.option(
        "--trace",
        is_flag=True,
        help="Trace the memory with the trainer, which must be installed; for a model type without a formula.",
    ),
    volume_options,
    # The GPUs.
    click.option(
        "--gpu", multiple=True, metavar="NAME", help='Name of a GPU, such as "NVIDIA L4"; repeatable.'
    ),
    click.option(
        "--gpu-memory", type=float, metavar="GIB", help="Usable memory in GiB, for a GPU that no table lists."
    ),
    click.option("--nodes", type=FILE, metavar="FILE", help="Output of kubectl get nodes -o json."),
    click.option("--profiles", type=FILE, metavar="FILE", help="The chart's gpuProfiles."),
    click.option(
        "--pod-defaults",
        type=FILE,
        metavar="FILE",
        help="The chart's trainer.podDefaults, for their node rules.",
    ),
    click.option("--context", metavar="NAME", help="Context of the kubeconfig from which to read the nodes."),
    click.option("--kubeconfig", metavar="FILE", help="Kubeconfig from which to read the nodes."),
    click.option(
        "--allow-time-slicing",
        is_flag=True,
        help="Include time-sliced GPUs, like the chart's allowTimeSlicing.",
    ),
    # The software.
    click.option(
        "--device",
        type=click.Choice(("cuda", "cpu")),
        default="cuda",
        show_default=True,
        help="The chart's trainer.device; with cpu, TRAIN takes the optimizer of a CPU.",
    ),
    click.option("--stack", type=FILE, metavar="FILE", help="Another stack profile (docs/stack-profile.md)."),
    click.option("--calibration", type=FILE, metavar="FILE", help="The chart's calibration."),
    click.option(
        "--cost", type=FILE, metavar="FILE", help="The chart's cost: prices and measured speeds of GPUs."
    ),
    click.option("--json", is_flag=True, help="Print JSON (contract/plan.schema.json)."),
)


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `finetune plan`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
