"""The table of docs/training.md follows the numbers of the benchmark."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.training.variants import DEFAULTS, VARIANTS
from scripts.docs.training_sweep import BEGIN, END, NAMES, PAGE, RESULTS, documents
from tests.support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def run(dataset: str, setting: str, value: Any, tuned: float) -> dict[str, Any]:
    return {"dataset": dataset, "setting": setting, "value": value, "baseLoss": 2.5, "tunedLoss": tuned}


RESULT = {
    "steps": 12,
    "batch": 2,
    "heldOutRows": 8,
    "defaults": DEFAULTS,
    "packages": {"airports": "airportsdata 1", "emoji": "emoji 2"},
    "runs": [
        run("airports", "", None, 0.5),
        run("emoji", "", None, 1.5),
        run("airports", "schedule", "Constant", 0.75),
        run("airports", "learningRate", 0.003, 0.625),
        run("airports", "learningRate", 0.0003, 1.25),
    ],
}


def test_each_setting_has_a_row_in_order_and_what_was_not_measured_is_visible(tmp_path: Path) -> None:
    for path in (RESULTS, PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / RESULTS).write_text(json.dumps(RESULT))
    (tmp_path / PAGE).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = documents(tmp_path)[PAGE]
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert [line for line in text.splitlines() if line.startswith("| ")] == [
        "| setting | airports | emoji |",
        "| untrained | 2.500 | 2.500 |",
        "| all as above | 0.500 | 1.500 |",
        "| learning rate 0.0003 | 1.250 | - |",
        "| learning rate 0.003 | 0.625 | - |",
        "| schedule Constant | 0.750 | - |",
    ]


def test_nothing_is_written_before_a_benchmark_ran(tmp_path: Path) -> None:
    assert documents(tmp_path) == {}


def test_every_setting_of_the_benchmark_has_a_name() -> None:
    assert {setting for setting, _value in VARIANTS} <= NAMES.keys()
    assert DEFAULTS.keys() <= NAMES.keys()


@pytest.mark.parametrize("path", [PAGE])
def test_the_page_is_up_to_date(path: Path) -> None:
    assert documents(ROOT)[path] == (ROOT / path).read_text("utf-8"), "run scripts/docs/training_sweep.py"
