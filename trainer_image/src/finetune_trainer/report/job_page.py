"""The report on a whole job as one HTML page: no network, no script, for a screen, a phone and paper."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.naming import base_model_name
from finetune_trainer.data.rows.excerpts import middle_cut, percent, visible
from finetune_trainer.report import job_charts
from finetune_trainer.report.evaluation_page import MEANINGS, VERDICTS
from finetune_trainer.report.evaluation_page import PAGE as EVALUATION_PAGE
from finetune_trainer.report.job_document import Failure, job_report, read_parts
from finetune_trainer.report.merge_page import PAGE as MERGE_PAGE
from finetune_trainer.report.page import page_template
from finetune_trainer.workspace.kept_logs import stored_logs
from finetune_trainer.workspace.layout import write_json_atomically, write_text_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jinja2 import Template

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

DOCUMENT = "job.json"
PAGE = "index.html"
_DETAILS = {"dataset.html": "Dataset", EVALUATION_PAGE: "Evaluation", MERGE_PAGE: "Merge"}
_SHOWN = 2000
"""Characters of a text in the page."""
_GIB = 2**30


def write_job_report(
    run: RunSpec,
    layout: WorkspaceLayout,
    *,
    failure: Failure | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    folder: Path | None = None,
    attempts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `job.json` and `index.html` from what the workspace holds now. Raises OSError.

    They go to the report's folder of the workspace, or to `folder`. `known` has results without a marker.
    `attempts` are those that the operator has recorded.
    """
    folder = layout.report if folder is None else folder
    report = job_report(run, read_parts(run, layout, failure, known, attempts), base_model_name(run))
    write_json_atomically(folder / DOCUMENT, report)
    pages = [name for name in _DETAILS if (folder / name).is_file()]
    logs = [log.path.name for log in stored_logs(folder)]
    write_text_atomically(folder / PAGE, render_job_page(report, pages, logs))


def render_job_page(report: Mapping[str, Any], pages: Sequence[str] = (), logs: Sequence[str] = ()) -> str:
    """Render the document of `job_report`, with links to `pages` and `logs`; equal arguments give equal bytes."""
    curve = report["curve"] or {}
    points, held_out = curve.get("points") or (), curve.get("heldOut") or ()
    evaluation, training = report["evaluation"], report["training"] or {}
    return (
        _template().render(
            report=report,
            pages={name: _DETAILS[name] for name in pages},
            logs=logs,
            interval=None
            if evaluation is None
            else job_charts.interval_plot(evaluation["difference"], evaluation["interval"]),
            curves={
                "Training loss, nats per learned token": job_charts.curve(points, "loss", held_out),
                "Learning rate": job_charts.curve(points, "learningRate"),
                "Gradient norm": job_charts.curve(points, "gradientNorm"),
            },
            held_out=bool(held_out),
            memory=job_charts.memory_bars(training.get("memory") or {}, report["memoryEstimate"] or {}),
            timeline=job_charts.timeline_bars(report["timeline"]),
        )
        + "\n"
    )


@cache
def _template() -> Template:
    return page_template(
        "job_page.html.jinja",
        {
            "number": _number,
            "signed": lambda value: f"{value:+.4g}",
            "share": lambda value: f"{value:.1%}",
            "points": lambda value: f"{100 * value:+.1f}",
            "percent": percent,
            "gib": lambda value: f"{value / _GIB:.2f} GiB",
            "lines": lambda text: visible(str(text), keep_lines=True),
            "text": lambda text: middle_cut(str(text), _SHOWN),
            "value": _value,
            "duration": job_charts.duration,
            "time": lambda text: visible(str(text))[:19].replace("T", " "),
        },
        {
            "meanings": MEANINGS,
            "verdicts": VERDICTS,
            "plot_width": job_charts.WIDTH,
            "plot_height": job_charts.HEIGHT,
        },
    )


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _value(value: Any) -> str:
    """Return a setting or identity as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in sorted(value.items())) or "none"
    if isinstance(value, int | float):
        return _number(value)
    return visible(str(value))
