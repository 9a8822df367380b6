from __future__ import annotations

import json
from typing import Any

from finetune_trainer.data.rows.rejection import RowReason

from tests.support.chat_templates.conversations import conversations
from tests.support.chat_templates.coverage_table import PAGE, page_with_table, table


def test_the_pages_table_equals_that_of_the_matrix() -> None:
    """`python -m tests.support.chat_templates.coverage_table` rewrites it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_table(page)
    assert table().count("\n") > 80


def test_the_page_names_only_existing_reasons() -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = page[page.index("## Rejected rows") : page.index("## Tested templates")]
    named = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert named <= {reason.value for reason in RowReason}
    assert len(named) >= 6


def test_the_pages_lines_have_the_shape_of_real_ones() -> None:
    page = PAGE.read_text(encoding="utf-8")
    block = page.split('{"row": 2')[1].split("```")[0]
    rejected: dict[str, Any] = json.loads('{"row": 2' + block)
    assert set(rejected) == {"row", "accepted", "reason", "examples", "field", "detail"}
    assert 40 <= len(conversations()) <= 60
