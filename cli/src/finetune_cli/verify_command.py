"""`finetune verify`: the program `verify.py`, which also runs alone, as a command."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import click

from finetune_cli.options import FILE, Command
from finetune_cli.verify import DESCRIPTION, run_verify


@click.command(
    "verify",
    cls=Command,
    help=DESCRIPTION,
    examples=(
        ("finetune verify ./support-bot", "Compare the files with their manifest."),
        ("finetune verify ./support-bot --key signing.pub", "Prove also who published them."),
    ),
)
@click.argument("folder", type=FILE)
@click.option("--key", type=FILE, metavar="FILE", help="Public key in PEM; a signature is then required.")
@click.option("--json", is_flag=True, help="Print findings as JSON.")
def command(**options: Any) -> int:
    """Verify a folder."""
    return run_verify(Namespace(**options), sys.stdout)
