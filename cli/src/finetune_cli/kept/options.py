"""The options of every command that reads from a cluster through a pod."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from finetune_cli.kept.reading import DEFAULT_SECONDS
from finetune_cli.options import cluster_options


def reader_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The cluster's options, and those of the pod. The function gets the `client` instead of the former."""
    function = cluster_options(function)
    function = click.option(
        "--timeout",
        type=click.IntRange(min=1),
        default=DEFAULT_SECONDS,
        show_default=True,
        metavar="SECONDS",
        help="Time in which that pod must end.",
    )(function)
    return click.option(
        "--image", help="Trainer image of the pod that reads a claim (default: that of the job)."
    )(function)
