from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from finetune_operator.api.stages import Stage
from finetune_operator.contract.dataset_report import DatasetReport
from finetune_operator.contract.result import EvaluationReport, TrainResult, Verification
from finetune_operator.status.reporting import (
    batching,
    climbed_down,
    config,
    dataset,
    evaluation,
    members,
    next_update,
    open_verdict,
    proof,
    read_dataset,
    rungs,
    selection,
    starting,
    trained,
    updated,
    verification,
)

from tests.support.crd_schema import root_schema, walk
from tests.support.operator import MERGE, MERGE_PROVEN, NOW, PREPARE, TRAIN, make_progress
from tests.support.repository import ROOT


def test_progress_is_written_every_half_minute_whatever_the_trainer_reports() -> None:
    shown = updated(
        starting(Stage.TRAIN, {}, NOW), make_progress(Stage.TRAIN, step=100, totalSteps=10000), NOW
    )
    assert (shown["percent"], shown["step"]) == ("1%", 100)
    soon, later = NOW + timedelta(seconds=29), NOW + timedelta(seconds=30)
    other = make_progress(Stage.TRAIN, activity="EvaluatingTuned", step=0, totalSteps=None, loss=None)
    for report in (
        make_progress(Stage.TRAIN, step=150, totalSteps=10000),
        make_progress(Stage.TRAIN, step=9000, totalSteps=10000),
        make_progress(Stage.MERGE, activity="Starting", step=0, totalSteps=None),
        other,
    ):
        assert updated(shown, report, soon) == shown
        assert next_update(shown, report) == later
        assert updated(shown, report, later)["step"] == report.step
    changed = updated(shown, other, later)
    assert changed["activity"] == "EvaluatingTuned"
    assert changed["loss"] == shown["loss"], "the last loss stays visible"
    assert "percent" not in changed
    unchanged = make_progress(Stage.TRAIN, step=100, totalSteps=10000)
    assert updated(shown, unchanged, later) == shown, "nothing new, nothing written"
    assert next_update(shown, unchanged) is None


def test_no_report_looks_like_the_first_one_again() -> None:
    """Otherwise a trainer could cause a write with every second report."""
    placeholder = starting(Stage.TRAIN, {}, NOW)
    for total in (None, 0, 40):
        report = make_progress(Stage.TRAIN, activity="Starting", step=0, totalSteps=total, loss=None)
        shown = updated(placeholder, report, NOW)
        following = make_progress(Stage.TRAIN, step=1, totalSteps=40)
        assert updated(shown, following, NOW + timedelta(seconds=29)) == shown


def test_the_tokens_that_end_answers_are_shown_and_read_again() -> None:
    ends = [{"id": 2, "text": "<|im_end|>"}]
    report = DatasetReport.model_validate({**PREPARE["dataset"], "endTokens": ends})
    assert dataset(report)["endTokens"] == ends
    read = read_dataset(dataset(report))
    assert read is not None
    assert read.end_tokens == report.end_tokens
    assert read_dataset({**dataset(report), "endTokens": "none"}) is None, "another version wrote it"
    assert "endTokens" not in dataset(DatasetReport.model_validate(PREPARE["dataset"]))


def test_the_proof_of_a_merge_is_shown_with_numbers_as_text() -> None:
    report = Verification.model_validate(MERGE_PROVEN["verification"])
    shown = verification(report)
    assert (shown["verdict"], shown["tokens"]) == ("Proven", 30)
    assert (shown["klDivergence"], shown["baseDivergence"], shown["noiseDivergence"]) == (
        "0.001",
        "0.116",
        "4e-05",
    )
    assert (shown["slope"], shown["slopeTolerance"], shown["survivingUpdate"]) == ("0.998", "0.051", "0.994")
    assert shown["warnings"][0]["value"] == "0.85"
    assert proof(report) == (
        "Proven: KL 0.001, adapter's effect 0.116 nats per token, noise 4e-05, slope 0.998, "
        "99.4% of the update survives"
    )


def test_a_merge_by_an_earlier_trainer_is_shown_without_a_verdict() -> None:
    report = Verification.model_validate(MERGE["verification"])
    assert verification(report).keys() == MERGE["verification"].keys()
    assert proof(report) == ""


def test_the_passes_of_a_training_are_shown_with_their_reason() -> None:
    found = {"kind": "Grouped", "budgetTokens": 4096, "realTokens": 0.9753, "reason": "a convolution"}
    report = TrainResult.model_validate({**TRAIN, "batching": found})
    assert report.batching is not None
    assert batching(report.batching) == {**found, "realTokens": "0.9753"}
    packed = TrainResult.model_validate({**TRAIN, "batching": {"kind": "Packed", "budgetTokens": 8}})
    assert packed.batching is not None
    assert batching(packed.batching) == {"kind": "Packed", "budgetTokens": 8}


def test_attention_and_kernels_of_a_training_are_shown_with_their_reasons() -> None:
    found = {"backend": "Varlen", "reason": "FlashAttention takes the bounds of the rows"}
    report = TrainResult.model_validate({**TRAIN, "attention": found})
    assert report.attention is not None
    assert members(report.attention) == found
    kernels = {"used": ["RmsNorm"], "reason": "not Rope, SwiGlu: phi3 has another MLP"}
    report = TrainResult.model_validate({**TRAIN, "kernels": kernels})
    assert report.kernels is not None
    assert members(report.kernels) == kernels


def test_a_training_that_ends_early_says_so_and_which_step_is_published() -> None:
    plain = {**TRAIN, "steps": 40}
    assert trained(TrainResult.model_validate(plain)) == "40 steps on cpu"
    chosen = {
        "rows": 10,
        "measurements": 4,
        "plannedSteps": 100,
        "publishedStep": 20,
        "stoppedEarly": True,
        "bestStep": 20,
        "bestLoss": 1 / 3,
    }
    report = TrainResult.model_validate({**plain, "selection": chosen})
    text = trained(report)
    assert "40 steps on cpu of 100 planned" in text
    assert "the adapter of step 20 is published" in text
    assert report.selection is not None
    assert selection(report.selection)["bestLoss"] == "0.333333"
    whole = {**chosen, "stoppedEarly": False, "publishedStep": 40}
    assert trained(TrainResult.model_validate({**plain, "selection": whole})) == "40 steps on cpu"


def test_a_ladder_without_failures_has_no_clause() -> None:
    assert rungs(None) == {}
    assert climbed_down({}) == ""
    result = TrainResult.model_validate({**TRAIN, "failedRungs": []})
    assert rungs(result) == {}


EVALUATED = json.loads((ROOT / "contract" / "fixtures" / "result.train-evaluated.json").read_text("utf-8"))[
    "train"
]


def _evaluation(document: dict[str, Any]) -> EvaluationReport:
    report = TrainResult.model_validate(document).evaluation
    assert report is not None
    return report


def test_an_evaluation_is_shown_with_numbers_as_text_and_counts_as_numbers() -> None:
    shown = evaluation(_evaluation(EVALUATED))
    assert (shown["rows"], shown["neededRows"], shown["verdict"]) == (2, 20, "Inconclusive")
    assert (shown["baseLoss"], shown["interval"]) == ("2", ["-1.25", "-0.75"])
    assert shown["byRow"]["interval"] == ["-1.5", "-0.5"]
    assert shown["tokenAccuracy"]["difference"] == "0.25"
    assert shown["metrics"] == [
        {
            "name": "ExactMatch",
            "rows": 2,
            "base": "0",
            "tuned": "0.5",
            "difference": "0.5",
            "interval": ["-0.25", "0.75"],
        },
        {"name": "JsonValid", "rows": 0, "reason": "no reference answer is a JSON object or array"},
    ]


def test_an_evaluation_by_an_earlier_trainer_is_shown_without_the_later_members() -> None:
    report = _evaluation(TRAIN)
    assert set(evaluation(report)) == {"rows", "baseLoss", "tunedLoss", "difference", "interval", "verdict"}
    assert open_verdict(report) == ""


def test_a_verdict_that_is_not_clear_names_the_rows_that_are_needed() -> None:
    report = TrainResult.model_validate(EVALUATED)
    sentence = "Inconclusive on 2 validation rows: a clear verdict needs about 20"
    assert open_verdict(_evaluation(EVALUATED)).startswith(sentence)
    assert sentence in trained(report)


def test_the_largest_config_of_any_script_fits_into_the_status() -> None:
    text = config({f"{number:03}{'字' * 61}": "字" * 64 for number in range(127)})
    bound = dict(walk(root_schema(), "job"))["job.status.model.config"]["maxLength"]
    assert len(text) <= bound
    assert json.loads(text)["000" + "字" * 61] == "字" * 64


def test_an_evaluation_that_only_a_newer_operator_can_read_is_said() -> None:
    report = TrainResult.model_validate(EVALUATED).model_copy(update={"evaluation": None})
    assert "its contract is newer than this operator's" in trained(report)
