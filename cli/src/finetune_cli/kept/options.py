"""The options of every command that reads from a cluster through a pod."""

from __future__ import annotations

import argparse

from finetune_cli.kept.reading import DEFAULT_SECONDS


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    """Add the cluster's options, and those of the pod."""
    parser.add_argument("-n", "--namespace", help="default: kubectl's")
    parser.add_argument("--context", help="context of the kubeconfig; default: kubectl's")
    parser.add_argument(
        "--image", help="trainer image of the pod that reads a claim; default: that of the job"
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help="time in which that pod must end (default: %(default)s)",
    )
