"""The picture and the table of docs/merging.md follow the numbers of the benchmark."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from scripts.docs.merge_survival import (
    BEGIN,
    END,
    OTHER_COLOR,
    OUR_COLOR,
    PAGE,
    PICTURE,
    RESULTS,
    documents,
    kept_gain,
    rows_of,
)
from tests.support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_SVG = "{http://www.w3.org/2000/svg}"


def row(onto: str, rule: str, rate: float, projection: float) -> dict[str, Any]:
    return {
        "onto": onto,
        "rule": rule,
        "learningRate": rate,
        "projection": projection,
        "relativeError": 0.5,
        "divergence": 1e-5,
        "effect": 0.1,
        "baseLoss": 2.0,
        "trainedLoss": 1.0,
        "mergedLoss": 1.25,
        "tokens": 300,
    }


RESULT = {
    "survival": [
        row("OriginalWeights", "nearest <b>", 2e-4, 0.25),
        row("TrainedWeights", "once (MERGE)", 2e-4, 0.99),
        row("TrainedWeights", "once (MERGE)", 2e-5, 0.97),
    ]
}


def written(root: Path, result: dict[str, Any]) -> dict[Path, str]:
    for path in (RESULTS, PAGE):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / RESULTS).write_text(json.dumps(result))
    (root / PAGE).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return documents(root)


def test_rows_are_in_the_order_of_base_rule_and_rate() -> None:
    assert [(found["onto"], found["learningRate"]) for found in rows_of(RESULT)] == [
        ("TrainedWeights", 2e-5),
        ("TrainedWeights", 2e-4),
        ("OriginalWeights", 2e-4),
    ]


def test_the_table_has_every_rule_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = written(tmp_path, RESULT)[PAGE]
    assert page.startswith(f"before\n{BEGIN}\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "| TrainedWeights | once (MERGE) | 2e-05 | 97.0% | 1e-05 | 0.1 | 2.0000, 1.0000, 1.2500 |" in page
    assert "old" not in page


def test_the_length_of_a_bar_is_the_share_that_survives(tmp_path: Path) -> None:
    root = ET.fromstring(written(tmp_path, RESULT)[PICTURE])  # noqa: S314 -- written by the code under test
    bars = [bar for bar in root.iter(f"{_SVG}rect") if bar.get("fill") in {OUR_COLOR, OTHER_COLOR}]
    assert [bar.get("fill") for bar in bars] == [OUR_COLOR, OUR_COLOR, OTHER_COLOR]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths[0] / widths[1] == pytest.approx(0.97 / 0.99, abs=0.001)
    assert widths[2] / widths[1] == pytest.approx(0.25 / 0.99, abs=0.001)
    assert "nearest <b>" in "".join(text for text in root.itertext())


def test_the_gain_that_is_kept_is_that_of_the_trained_model() -> None:
    assert kept_gain(row("TrainedWeights", "once", 1e-4, 1.0)) == 0.75
    assert kept_gain({**row("TrainedWeights", "once", 1e-4, 1.0), "trainedLoss": 2.0}) == 1.0


def test_the_page_and_the_picture_are_those_of_the_benchmark() -> None:
    for path, text in documents(ROOT).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, (
            f"run scripts/docs/merge_survival.py: {path}"
        )
