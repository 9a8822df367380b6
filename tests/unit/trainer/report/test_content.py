"""Shared text of rows (system prompts, instructions) does not make rows similar."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.report_tables import (
    Turns,
    analyze_turns,
    sentences,
)

if TYPE_CHECKING:
    pass


def test_a_long_system_prompt_that_all_rows_share_makes_no_near_duplicates(tmp_path: Path) -> None:
    (system,) = sentences(1, 77, size=300)
    rows: list[Turns] = [
        [(f"what is {a} plus {b}", f"{a + b}")] for a, b in itertools.product(range(12), range(12))
    ]
    assert analyze_turns(tmp_path, rows, system=system).statistics.near_duplicates.rows == 0


def test_a_long_instruction_that_prompts_begin_with_makes_no_near_duplicates(tmp_path: Path) -> None:
    """Some templates have no control token between system prompt and user text."""
    (instruction,) = sentences(1, 77, size=100)
    prompts = sentences(60, 3, size=12)
    rows: list[Turns] = [
        [(f"{instruction} {prompt}", "yes" if number % 2 else "no")] for number, prompt in enumerate(prompts)
    ]
    assert analyze_turns(tmp_path, rows).statistics.near_duplicates.rows == 0


def test_instructions_that_differ_after_a_common_beginning_make_no_near_duplicates(tmp_path: Path) -> None:
    common, *branches = (text for size in (30, 80, 80) for text in sentences(1, size + 7, size=size))
    branches[1] = " ".join(f"other{word}" for word in branches[1].split(" "))
    rows: list[Turns] = [
        [(f"{common} {branches[number % 2]} {prompt}", "fine")]
        for number, prompt in enumerate(sentences(80, 3, size=8))
    ]
    found = analyze_turns(tmp_path, rows).statistics
    assert found.near_duplicates.rows == 0
    assert found.prompts.variety is not None
    assert found.prompts.variety > 0.9
