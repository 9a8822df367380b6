"""Every command line in the documentation is one that the command line accepts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from finetune_cli.app import COMMANDS, finetune

from tests.support.repository import ROOT

BLOCK = re.compile(r"^```(?:console|sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^(?:\$ )?(?:eval \"\$\()?(?:\.venv/bin/)?(?:kubectl )?finetune (?P<rest>.+)$")
END = re.compile(r" (?:>|\||&&|#) ?|\)\"$")


def documented() -> Iterator[tuple[str, str]]:
    """Document and arguments of each command line."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in BLOCK.findall(path.read_text("utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if matched := LINE.match(line.strip()):
                    yield path.relative_to(ROOT).as_posix(), END.split(matched["rest"])[0]


@pytest.mark.parametrize(("document", "arguments"), sorted(set(documented())))
def test_documented_commands_are_accepted(document: str, arguments: str) -> None:
    name, *words = shlex.split(arguments)
    command = finetune.get_command(click.Context(finetune), name)
    assert command is not None, f"{document} names the command {name}"
    command.make_context(name, words)


def test_the_documentation_shows_every_command() -> None:
    assert {shlex.split(arguments)[0] for _document, arguments in documented()} >= set(COMMANDS)
