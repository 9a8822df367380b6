from __future__ import annotations

from datetime import timedelta

from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import DatasetReport
from finetune_operator.status.reporting import dataset, read_dataset, starting, updated

from tests.support.operator import NOW, PREPARE, make_progress


def test_progress_is_written_on_a_new_activity_a_percent_or_after_half_a_minute() -> None:
    shown = updated(
        starting(Stage.TRAIN, {}, NOW), make_progress(Stage.TRAIN, step=100, totalSteps=10000), NOW
    )
    assert (shown["percent"], shown["step"]) == ("1%", 100)
    soon, later = NOW + timedelta(seconds=10), NOW + timedelta(seconds=30)
    same = make_progress(Stage.TRAIN, step=150, totalSteps=10000)
    assert updated(shown, same, soon) == shown
    assert updated(shown, same, later)["step"] == 150
    assert updated(shown, make_progress(Stage.TRAIN, step=200, totalSteps=10000), soon)["percent"] == "2%"
    other = make_progress(Stage.TRAIN, activity="EvaluatingTuned", step=0, totalSteps=None, loss=None)
    changed = updated(shown, other, soon)
    assert changed["activity"] == "EvaluatingTuned"
    assert changed["loss"] == shown["loss"], "the last loss stays visible"
    assert "percent" not in changed
    unchanged = make_progress(Stage.TRAIN, step=100, totalSteps=10000)
    assert updated(shown, unchanged, later) == shown, "nothing new, nothing written"


def test_the_tokens_that_end_answers_are_shown_and_read_again() -> None:
    ends = [{"id": 2, "text": "<|im_end|>"}]
    report = DatasetReport.model_validate({**PREPARE["dataset"], "endTokens": ends})
    assert dataset(report)["endTokens"] == ends
    assert read_dataset(dataset(report)).end_tokens == report.end_tokens
    assert "endTokens" not in dataset(DatasetReport.model_validate(PREPARE["dataset"]))
