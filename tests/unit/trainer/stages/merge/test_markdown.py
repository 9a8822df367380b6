from __future__ import annotations

import html
import re

import pytest
from finetune_trainer.stages.merge.markdown import code, plain
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

_TEXT = st.text(
    alphabet=st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cc", "Cf"]), min_size=1
)


def shown(markdown: str) -> str:
    """Return what a reader sees of inline Markdown, without the paragraph around it."""
    rendered = MarkdownIt("commonmark").renderInline(markdown)
    assert not re.search(r"<(?!/?code>)", rendered), rendered
    return html.unescape(re.sub(r"</?code>", "", rendered))


@given(_TEXT)
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    assert shown(plain(text)) == text


@given(_TEXT)
def test_code_is_shown_as_it_is(text: str) -> None:
    assert shown(code(text)) == text


@pytest.mark.parametrize("text", ["a|b", "`|`", "||"])
def test_code_in_a_table_stays_in_its_cell(text: str) -> None:
    table = f"| a | b |\n|---|---|\n| x | {code(text, in_table=True)} |"
    rendered = MarkdownIt("commonmark").enable("table").render(table)
    assert rendered.count("<td>") == 2
    assert text in html.unescape(rendered)


def test_lines_and_invisible_characters_become_escapes() -> None:
    assert plain("a\nb\u202e") == "a\\\\nb\\\\u202e"
    assert code("a\nb") == "`a\\nb`"
