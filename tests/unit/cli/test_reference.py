from __future__ import annotations

from finetune_cli.app import COMMANDS
from finetune_cli.exit_codes import ExitCode
from finetune_cli.reference import reference


def test_every_command_has_a_section_with_usage_options_and_examples() -> None:
    sections = reference().split("\n## finetune ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(COMMANDS)
    for name, section in zip(COMMANDS, sections, strict=True):
        assert f"Usage: finetune {name}" in section
        assert "| option | meaning |" in section
        assert f"\nfinetune {name}" in section or f"$(finetune {name}" in section


def test_every_exit_code_has_a_row() -> None:
    for code in ExitCode:
        assert f"| {int(code)} | {code.meaning} |" in reference()


def test_bars_of_choices_do_not_split_the_table() -> None:
    assert "[wide\\|json\\|yaml\\|name]" in reference()
