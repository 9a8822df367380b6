from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from finetune_trainer.report.curve import MAXIMUM_POINTS, training_report, write_training_report


def entry(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "loss": loss, "learning_rate": 0.5, "grad_norm": 2.0}


def test_a_short_training_has_a_point_for_each_step(tmp_path: Path) -> None:
    history = [entry(1, 3.0), {"step": 1, "selection_loss": 9.0}, entry(2, 2.0)]
    report = training_report("job", history, [(1, 9.0), (2, math.nan)])
    assert report["points"] == [
        {"step": 1, "loss": 3.0, "learningRate": 0.5, "gradientNorm": 2.0},
        {"step": 2, "loss": 2.0, "learningRate": 0.5, "gradientNorm": 2.0},
    ]
    assert report["heldOut"] == [{"step": 1, "loss": 9.0}]
    write_training_report(tmp_path / "report", report)
    assert json.loads((tmp_path / "report" / "training.json").read_text()) == report


def test_a_long_training_has_means_and_ends_at_its_last_step() -> None:
    count = 10 * MAXIMUM_POINTS + 1
    report = training_report("job", [entry(step, float(step)) for step in range(1, count + 1)], [])
    assert report["steps"] == count
    assert len(report["points"]) <= MAXIMUM_POINTS
    assert report["points"][-1]["step"] == count
    assert report["points"][0]["loss"] == pytest.approx(6.0), "the mean of steps 1 to 11"


def test_a_step_that_was_repeated_after_a_resume_counts_once() -> None:
    report = training_report("job", [entry(1, 3.0), entry(2, 9.0), entry(2, 2.0)], [])
    assert [point["loss"] for point in report["points"]] == [3.0, 2.0]


def test_a_training_without_steps_has_no_points() -> None:
    assert training_report("job", [], [])["points"] == []
