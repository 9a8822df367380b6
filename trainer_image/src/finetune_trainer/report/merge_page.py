"""The report on a merge: what the merged model keeps of the trained one, as JSON and as one HTML page with plots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune_trainer.report.evaluation_page import PAGE as EVALUATION_PAGE
from finetune_trainer.report.page import PLOT_WIDTH, page_template
from finetune_trainer.workspace.layout import write_json_atomically, write_text_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jinja2 import Template

    from finetune_trainer.contract.result import VerificationResult
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.contract.train_result import TrainResult

DOCUMENT = "merge.json"
PAGE = "merge.html"
_OTHER_PAGES = {"dataset.html": "Dataset report", EVALUATION_PAGE: "Evaluation report"}
WEAKEST = 12
"""Tensors in the page's table; the JSON document has all."""
_DECADES_BELOW = 1
_BINS = 20
_BIN_HEIGHT = 110


@dataclass(frozen=True)
class Level:
    """One divergence on a logarithmic scale: its name, its value in nats, and its bar in SVG user units."""

    name: str
    value: float
    width: float


@dataclass(frozen=True)
class Bin:
    """Tensors whose survival lies in one bin: left edge, width and height in SVG user units, and the counts as text."""

    x: float
    width: float
    height: float
    title: str


def merge_report(
    run: RunSpec, trained: TrainResult, verification: VerificationResult, merge: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report as JSON. `merge` is the member of that name in the manifest, with the survival per tensor."""
    return {
        "version": "1.0",
        "job": run.job.name,
        "merge": dict(merge),
        "training": {
            "steps": trained.steps,
            "learningRate": run.training.learning_rate,
            "learningRateReason": run.training.learning_rate_reason,
        },
        "evaluation": trained.evaluation.document(),
        "verification": verification.document(),
    }


def write_merge_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `merge.json` and `merge.html` into `folder`, which is made if it is missing. Raises OSError.

    The page links those of PREPARE and TRAIN that are in `folder`.
    """
    write_json_atomically(folder / DOCUMENT, report)
    pages = [name for name in _OTHER_PAGES if (folder / name).is_file()]
    write_text_atomically(folder / PAGE, render_merge_page(report, pages))


def render_merge_page(report: dict[str, Any], pages: Sequence[str] = ()) -> str:
    """Render the document of `merge_report`, with links to `pages`; equal arguments give equal bytes."""
    tensors = known_survival(report)
    return (
        _template().render(
            report=report,
            levels=levels(report["verification"]),
            bins=survival_bins([projection for _, projection, _ in tensors]),
            weakest=tensors[:WEAKEST],
            tensors=len(tensors),
            pages={name: _OTHER_PAGES[name] for name in pages},
        )
        + "\n"
    )


def known_survival(report: Mapping[str, Any]) -> list[tuple[str, float, float | None]]:
    """Return (tensor, projection, relative error) of each tensor with a known projection, the weakest first."""
    found = [
        (name, numbers["projection"], numbers["relativeError"])
        for name, numbers in report["merge"]["tensors"].items()
        if numbers["projection"] is not None
    ]
    return sorted(found, key=lambda entry: (entry[1], entry[0]))


def levels(verification: Mapping[str, Any]) -> tuple[Level, ...]:
    """Return the known divergences as bars on one logarithmic scale; none if fewer than two are above zero."""
    names = {
        "adapter's effect": "baseDivergence",
        "merged model": "klDivergence",
        "noise of rounding and arithmetic": "noiseDivergence",
    }
    known = {
        name: verification[member]
        for name, member in names.items()
        if verification.get(member) is not None and verification[member] > 0
    }
    if len(known) < 2:
        return ()
    low = math.floor(math.log10(min(known.values()))) - _DECADES_BELOW
    span = max(1.0, math.ceil(math.log10(max(known.values()))) - low)
    return tuple(
        Level(name, value, round((math.log10(value) - low) / span * PLOT_WIDTH, 2))
        for name, value in known.items()
    )


def survival_bins(projections: list[float]) -> tuple[Bin, ...]:
    """Return a histogram of survivals from 0 to 1; values beyond it count in the first and the last bin."""
    if not projections:
        return ()
    counts = [0] * _BINS
    for projection in projections:
        counts[min(max(int(projection * _BINS), 0), _BINS - 1)] += 1
    width, largest = PLOT_WIDTH / _BINS, max(counts)
    return tuple(
        Bin(
            round(number * width, 2),
            round(width - 1, 2),
            round(count / largest * _BIN_HEIGHT, 2),
            f"{number / _BINS:.0%} to {(number + 1) / _BINS:.0%} of the update: {count} tensors",
        )
        for number, count in enumerate(counts)
    )


@cache
def _template() -> Template:
    return page_template(
        "merge_page.html.jinja",
        {"number": lambda value: f"{value:.4g}", "share": lambda value: f"{value:.2%}"},
        {"plot_width": PLOT_WIDTH, "bin_height": _BIN_HEIGHT},
    )
