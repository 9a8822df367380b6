from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.report.merge_page import (
    known_survival,
    levels,
    merge_report,
    render_merge_page,
    survival_bins,
    write_merge_report,
)

from tests.support.results import MERGE, PROVEN, TRAIN
from tests.support.workspaces import run_spec

_MERGE: dict[str, Any] = {
    "onto": "TrainedWeights",
    "dtype": "BFloat16",
    "rounding": "Nearest",
    "tensors": {
        "strong.weight": {"projection": 0.999, "relativeError": 0.01},
        "weak<b>.weight": {"projection": 0.42, "relativeError": 0.9},
        "zero.weight": {"projection": None, "relativeError": None},
    },
}


RUN = run_spec(Path("workspace"), Path("output"))


def proven() -> dict[str, Any]:
    assert PROVEN.verification is not None
    return merge_report(RUN, TRAIN, PROVEN.verification, _MERGE)


def test_the_page_shows_verdict_numbers_warnings_and_weak_tensors() -> None:
    page = render_merge_page(proven())
    for part in ("Proven.", "0.116", "4e-05", "0.998", "99.40%", "UpdateLostInTensor", "42.00%"):
        assert part in page
    assert "adapter on the original base" in page
    assert "weak&lt;b&gt;.weight" in page, "names of tensors are text"
    assert "zero.weight" not in page
    assert "<script" not in page


def test_a_proof_of_an_earlier_trainer_is_shown_without_the_unknown_numbers() -> None:
    assert MERGE.verification is not None
    report = merge_report(RUN, TRAIN, MERGE.verification, {**_MERGE, "tensors": {}})
    page = render_merge_page(report)
    assert "within absolute bounds" in page
    assert "Not measured." in page
    assert "slope" not in page


def test_a_merge_onto_the_original_weights_is_compared_with_the_adapter_on_these() -> None:
    report = proven()
    assert "KL(trained, merged)" in render_merge_page(report)
    report["merge"]["onto"] = "OriginalWeights"
    page = render_merge_page(report)
    assert "KL(adapter on original, merged)" in page
    assert "KL(trained" not in page


def test_the_effect_below_the_noise_is_said() -> None:
    report = proven()
    report["verification"]["verdict"] = "Unproven"
    assert "Unproven." in render_merge_page(report)


def test_the_weakest_tensors_come_first() -> None:
    assert [name for name, _, _ in known_survival(proven())] == ["weak<b>.weight", "strong.weight"]


def test_divergences_are_drawn_on_one_logarithmic_scale() -> None:
    effect, merge, noise = levels({"baseDivergence": 1.0, "klDivergence": 1e-4, "noiseDivergence": 1e-2})
    assert effect.width - noise.width == pytest.approx(noise.width - merge.width, abs=0.02)
    assert 0 < merge.width < noise.width < effect.width <= 640
    assert levels({"klDivergence": 1e-4, "baseDivergence": None}) == ()
    assert levels({"klDivergence": 0.0, "baseDivergence": 1.0}) == (), "zero has no place on this scale"


def test_survivals_beyond_the_scale_count_in_its_last_bins() -> None:
    bins = survival_bins([-0.5, 0.0, 0.5, 1.0, 1.2])
    assert [column.title for column in bins if column.height > 0] == [
        "0% to 5% of the update: 2 tensors",
        "50% to 55% of the update: 1 tensors",
        "95% to 100% of the update: 2 tensors",
    ]
    assert survival_bins([]) == ()


def test_the_report_is_written_for_people_and_programs(tmp_path: Path) -> None:
    write_merge_report(tmp_path / "report", proven())
    assert json.loads((tmp_path / "report" / "merge.json").read_text()) == proven()
    assert (tmp_path / "report" / "merge.html").read_text() == render_merge_page(proven())


def test_the_page_links_the_other_reports_that_are_there(tmp_path: Path) -> None:
    """An earlier image wrote no report on the evaluation."""
    for page, others in (
        ("dataset.html", ["dataset.html"]),
        ("evaluation.html", ["dataset.html", "evaluation.html"]),
    ):
        (tmp_path / page).write_text("")
        write_merge_report(tmp_path, proven())
        written = (tmp_path / "merge.html").read_text()
        assert [name for name in ("dataset.html", "evaluation.html") if f'href="{name}"' in written] == others


def test_the_report_says_why_the_learning_rate_has_its_value() -> None:
    reason = "(2000 / 576)^0.781 <hidden size>"
    training = RUN.training.model_copy(update={"learning_rate": 3.2e-4, "learning_rate_reason": reason})
    assert PROVEN.verification is not None
    report = merge_report(RUN.model_copy(update={"training": training}), TRAIN, PROVEN.verification, _MERGE)
    assert report["training"] == {"steps": TRAIN.steps, "learningRate": 3.2e-4, "learningRateReason": reason}
    page = render_merge_page(report)
    assert "0.00032" in page
    assert "(2000 / 576)^0.781 &lt;hidden size&gt;" in page
    assert "None" not in render_merge_page(proven())
