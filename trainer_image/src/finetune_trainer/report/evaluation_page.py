"""The report on an evaluation: what training has changed, as JSON and as one HTML page with answers of both models."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.excerpts import middle_cut
from finetune_trainer.report.page import page_template
from finetune_trainer.workspace.layout import write_json_atomically, write_text_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Template

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.contract.train_result import EvaluationResult

DOCUMENT = "evaluation.json"
PAGE = "evaluation.html"
_SHOWN = 4000
"""Characters of a text in the page; the JSON document has all."""
MEANINGS = {
    "ExactMatch": "share of answers that equal the reference, apart from space around them",
    "JsonValid": "share of answers that are JSON as a whole",
    "JsonFields": "share of the reference's JSON fields that the answer has with an equal value",
}
VERDICTS = {
    "Improved": "The tuned model predicts held-out answers better than the base model.",
    "Worse": "The tuned model predicts held-out answers worse than the base model.",
    "NoChange": "The measured difference may be due to chance.",
    "Inconclusive": "There are too few held-out rows for a verdict.",
}


def evaluation_report(run: RunSpec, evaluation: EvaluationResult, answers: Any) -> dict[str, Any]:
    """Return the report as JSON. `answers` are those of `evaluation.answers.Answers`."""
    return {
        "version": "1.0",
        "job": run.job.name,
        "minimumRows": run.evaluation.minimum_rows,
        "evaluation": evaluation.document(),
        "samples": [asdict(sample) for sample in answers.samples],
        "rows": [asdict(row) for row in answers.rows],
    }


def write_evaluation_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `evaluation.json` and `evaluation.html` into `folder`, which is made if it is missing. Raises OSError."""
    write_json_atomically(folder / DOCUMENT, report)
    write_text_atomically(folder / PAGE, render_evaluation_page(report))


def render_evaluation_page(report: dict[str, Any]) -> str:
    """Render the document of `evaluation_report`; equal documents give equal bytes."""
    return _template().render(report=report) + "\n"


@cache
def _template() -> Template:
    return page_template(
        "evaluation_page.html.jinja",
        {
            "number": lambda value: f"{value:.4g}",
            "signed": lambda value: f"{value:+.4g}",
            "share": lambda value: f"{value:.1%}",
            "points": lambda value: f"{100 * value:+.1f}",
            "text": lambda text: middle_cut(str(text), _SHOWN),
        },
        {"meanings": MEANINGS, "verdicts": VERDICTS},
    )
