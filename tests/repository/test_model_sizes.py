"""The tables of docs/models.md follow the kept traces, and what the estimator computes from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.models.__main__ import inputs
from benchmarks.models.catalog import BY_FORMULA, TRACED
from scripts.docs.model_sizes import PAGE, RESULTS, SECTIONS, documents, marks, natural
from tests.support.memory_oracle.comparison import TOO_LITTLE, TOO_MUCH
from tests.support.memory_oracle.published import BY_NAME
from tests.support.memory_traces import memory_trace
from tests.support.repository import ROOT

KEPT: dict[str, Any] = json.loads((ROOT / RESULTS).read_text("utf-8"))
PHASES = {"Load": 1 << 30, "Recompute": 2 << 30}
MEASURED = {"day": "2026-11-30", "tools": {"torch": "2.9"}}


def page(tmp_path: Path, results: dict[str, Any]) -> list[str]:
    """Return the lines of a page that has all marks."""
    for path in (RESULTS, PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / RESULTS).write_text(json.dumps(results))
    (tmp_path / PAGE).write_text("\n".join("\n".join(marks(part)) for part in SECTIONS))
    return documents(tmp_path)[PAGE].splitlines()


def test_a_model_is_sized_by_its_formula_or_by_its_trace(tmp_path: Path) -> None:
    lines = page(
        tmp_path,
        {
            "formula": {"Qwen3 8B": BY_FORMULA["Qwen3 8B"]},
            "sizes": {"Unknown 1B": {"type": "unknown", "trace": memory_trace(30, length=2048)}},
        },
    )
    known, unknown = [line for line in lines if line.startswith("| ")][1:]
    assert known.startswith("| Qwen3 8B | `qwen3` | 8.2 B | ")
    assert known.endswith(" | NVIDIA RTX 3080 | formula |")
    assert unknown.startswith("| Unknown 1B | `unknown` | 1.1 B | ")
    assert unknown.endswith(" | trace |")
    assert 30 < float(unknown.split(" | ")[3].split()[0]) < 40


def test_the_text_part_is_that_of_a_checkpoint_that_also_sees(tmp_path: Path) -> None:
    text = BY_FORMULA["Gemma 3 4B"]["text_config"]
    lines = page(tmp_path, {"formula": {"Seeing": BY_FORMULA["Gemma 3 4B"], "Text": text}, "sizes": {}})
    seeing, alone = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert seeing[1] == "`gemma3`"
    assert seeing[2:] == alone[2:]


def test_a_difference_is_that_of_the_largest_phases(tmp_path: Path) -> None:
    entry = {
        "plan": "1 x 7",
        "run": PHASES,
        "traced": {**PHASES, "Load": 0, "Recompute": (2 << 30) * 1.01},
        "seconds": 12.4,
        "host_bytes": 900 << 20,
        **MEASURED,
    }
    lines = page(tmp_path, {"accuracy": {"Some 2B": entry}})
    assert "| Some 2B | 1 x 7 | 2.00 GiB | 2.02 GiB | +1.00% | 12 s | 900 MiB |" in lines
    assert "Models compared: 1, from +1.00% to +1.00%." in lines
    assert "Measured on 2026-11-30 with torch 2.9." in lines


def test_names_are_sorted_by_their_numbers() -> None:
    assert sorted(["A 70B", "A 8B", "A 1.5B", "B 1B"], key=natural) == ["A 1.5B", "A 8B", "A 70B", "B 1B"]


def test_the_kept_traces_are_of_the_present_inputs() -> None:
    """If not, run `python -m benchmarks.models --only sizes --missing --write`."""
    assert KEPT["formula"] == BY_FORMULA
    assert {name: entry["inputs"] for name, entry in KEPT["sizes"].items()} == {
        name: inputs(name) for name in TRACED
    }


def test_every_kept_trace_agrees_with_the_run_of_all_layers() -> None:
    assert set(KEPT["accuracy"]) <= set(BY_NAME)
    for name, entry in KEPT["accuracy"].items():
        share = max(entry["traced"].values()) / max(entry["run"].values())
        assert TOO_LITTLE <= share <= TOO_MUCH, name
        assert entry["seconds"] <= 120, name
        assert entry["host_bytes"] <= 3 << 30, name


def test_the_page_is_up_to_date() -> None:
    assert documents(ROOT)[PAGE] == (ROOT / PAGE).read_text("utf-8"), "run scripts/docs/model_sizes.py"
