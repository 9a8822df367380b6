from __future__ import annotations

import pytest
from finetune_cli.cleaning import clean


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m\n", "red\n"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("1 %\r2 %\r\n", "1 %\n2 %\n"),
        ("a\x08b\x00\x9b\u202ec", "a\\x08b\\x00\\x9b\\u202ec"),
        ("Grüße, 你好\n", "Grüße, 你好\n"),
        ("\x1b", "\\x1b"),
    ],
)
def test_a_line_cannot_command_the_terminal(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
