from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.train_result import EvaluationResult, TrainResult
from finetune_trainer.evaluation.answers import Answers, AnswerText, Sample
from finetune_trainer.report.evaluation_page import (
    evaluation_report,
    render_evaluation_page,
    write_evaluation_report,
)

from tests.support.results import TRAIN, fixture
from tests.support.workspaces import run_spec

if TYPE_CHECKING:
    from pathlib import Path

EVALUATED = TrainResult.model_validate(fixture("train-evaluated")["train"]).evaluation
ANSWERS = Answers(
    samples=(
        Sample(
            "<s>ask</s>", 7, "right", AnswerText("wrong", ended=False), AnswerText("right\u202e", ended=True)
        ),
        Sample("unanswered", reason="the chat template refuses the prompt"),
    )
)


def report(
    tmp_path: Path, evaluation: EvaluationResult = EVALUATED, answers: Answers = ANSWERS
) -> dict[str, Any]:
    return evaluation_report(run_spec(tmp_path, tmp_path), evaluation, answers)


def test_the_page_shows_both_means_metrics_needed_rows_and_answers(tmp_path: Path) -> None:
    page = render_evaluation_page(report(tmp_path))
    for part in (
        "<strong>Inconclusive.</strong>",
        "With about 20 rows",
        "loss per token",
        "loss per row",
        "token accuracy",
        "perplexity",
        "ExactMatch",
        "not measured: no reference answer is a JSON object or array",
        "Held-out row 7",
        "Base model, cut at the token limit",
        "Sample prompt 2",
        "Not answered: the chat template refuses the prompt.",
    ):
        assert part in page


def test_texts_of_models_and_data_are_escaped(tmp_path: Path) -> None:
    page = render_evaluation_page(report(tmp_path))
    assert "&lt;s&gt;ask&lt;/s&gt;" in page
    assert "\u202e" not in page
    assert "script" not in page


def test_a_result_of_an_earlier_trainer_has_a_page(tmp_path: Path) -> None:
    page = render_evaluation_page(report(tmp_path, TRAIN.evaluation, Answers()))
    assert "loss per token" in page
    assert "loss per row" not in page
    assert "This job generates no answers." in page


def test_the_document_keeps_whole_texts(tmp_path: Path) -> None:
    long = Answers(
        rows=(Sample("p", 1, "r" * 9000, AnswerText("b", ended=True), AnswerText("t", ended=True)),)
    )
    write_evaluation_report(tmp_path / "report", report(tmp_path, answers=long))
    document = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert document["rows"][0]["reference"] == "r" * 9000
    assert (tmp_path / "report" / "evaluation.html").is_file()
