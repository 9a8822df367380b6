"""The table of docs/training.md follows the estimate."""

from __future__ import annotations

import pytest

from scripts.docs.gpu_counts import BEGIN, COUNTS, END, MODELS, PAGE, PRODUCTS, cell, document
from tests.support.repository import ROOT


@pytest.mark.slow
def test_the_page_follows_the_estimate() -> None:
    assert document(ROOT) == (ROOT / PAGE).read_text("utf-8"), "run scripts/docs/gpu_counts.py"


def test_every_model_has_a_row_with_a_cell_for_each_number_of_gpus() -> None:
    table = (ROOT / PAGE).read_text("utf-8").split(BEGIN)[1].split(END)[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")][2:]
    assert [row[0].strip() for row in rows] == list(MODELS)
    assert {len(row) for row in rows} == {1 + len(PRODUCTS) * len(COUNTS)}


def test_a_cell_says_whether_gpus_hold_replicas_or_parts() -> None:
    large = MODELS["Llama 3.3 70B"]
    assert cell(large, 24, 1) == "-"
    assert cell(large, 40, 2).startswith("part ")
    assert cell(large, 80, 2).startswith("whole ")
