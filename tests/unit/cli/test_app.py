from __future__ import annotations

import shlex

import click
import pytest
from finetune_cli.app import COMMANDS, finetune
from finetune_cli.options import Command


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_example_is_a_valid_command_line(name: str) -> None:
    command = finetune.get_command(click.Context(finetune), name)
    assert isinstance(command, Command)
    assert command.examples
    for line, _meaning in command.examples:
        words = shlex.split(line.removeprefix('eval "$(').removesuffix(')"').partition(" > ")[0])
        assert words[:2] == ["finetune", name]
        command.make_context(name, words[2:])


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_is_described(name: str) -> None:
    command = finetune.get_command(click.Context(finetune), name)
    assert command is not None
    assert command.help
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name


def test_the_list_of_commands_has_every_command_under_its_section() -> None:
    printed = finetune.get_help(click.Context(finetune, info_name="finetune"))
    for name, entry in COMMANDS.items():
        assert f"{entry.section}:" in printed
        assert f"  {name} " in printed


def test_an_unknown_command_does_not_exist() -> None:
    assert finetune.get_command(click.Context(finetune), "nonsense") is None
