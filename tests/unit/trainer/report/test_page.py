"""The page is one file without network access or scripts.

It shows hostile text as text, and equal reports give equal bytes.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from finetune_trainer.contract.run_spec import Thresholds
from finetune_trainer.data.dataset.counts import DatasetReport
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.report.document import DatasetDocument
from finetune_trainer.report.page import PLOT_HEIGHT, PLOT_WIDTH, plot, render_html
from finetune_trainer.report.statistics import Histogram
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.report_tables import analyze_turns, single_turns

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.report_tables import Turns, single_turns

HOSTILE = "</code></td><script>alert(1)</script><img src=x onerror=alert(2)>'\"`&amp;{{ 7*7 }}\u202egpj.exe"
VOID = {"meta", "br", "line", "img"}
HTML_ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "code", "div", "strong", "span", "br",
    "table", "caption", "tr", "th", "td", "bdi", "details", "summary", "pre", "mark", "figure", "figcaption", "svg",
    "text", "rect", "line",
}  # fmt: skip


class Page(HTMLParser):
    """Collects the elements, attributes and text of a page. Raises an error for wrong nesting."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_document(folder: Path) -> dict[str, Any]:
    """Return a report with hostile text in every place that shows external text."""
    rows: list[Turns] = [*single_turns(40, 1), [(HOSTILE, HOSTILE)], [(f"{HOSTILE} again", HOSTILE)]]
    near = [
        (" ".join([*(f"w{number}" for number in range(40)), last, HOSTILE]), "fine") for last in ("a", "b")
    ]
    rows += [[near[0]], [near[1]]]
    targets = folder / "targets.txt"
    unheard = " ".join(f"unheard{letter}of{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    targets.write_text(f"{HOSTILE} {unheard}", encoding="utf-8")
    analysis = analyze_turns(folder, rows, [[near[0]]], target_prompts=targets)
    training, validation = DatasetReport(rows=44, kept=44), DatasetReport(rows=2, kept=1)
    training.reject(
        5, RowRejected(RowReason.INVALID_MESSAGES, HOSTILE, HOSTILE), {HOSTILE: HOSTILE * 100_000}
    )
    validation.reject(1, RowRejected(RowReason.TEMPLATE_REFUSED, "messages", HOSTILE), HOSTILE)
    report = DatasetDocument(
        digest="sha256:" + "0" * 64,
        training_source={"kind": "Url", "etag": HOSTILE, "size": 5},
        validation_source={"commit": "c" * 40, HOSTILE: None},
        training_rows=training,
        validation_rows=validation,
        analysis=analysis,
        format_name="Messages",
        format_reason=HOSTILE,
        settings={"seed": 1, "thresholds": Thresholds().model_dump(mode="json", by_alias=True)},
    )
    document: dict[str, Any] = json.loads(json.dumps(report.to_json()))
    return document


def test_hostile_text_is_shown_as_text_everywhere(tmp_path: Path) -> None:
    page = Page(render_html(hostile_document(tmp_path)))
    assert {tag for tag, _ in page.elements} <= HTML_ELEMENTS
    shown = "".join(page.texts)
    assert shown.count("<script>alert(1)</script>") >= 8
    assert "\u202e" not in shown
    assert "{{ 7*7 }}" in shown


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    source = render_html(hostile_document(tmp_path))
    page = Page(source)
    loading = {"src", "href", "srcset", "action", "data", "poster", "style"}
    for tag, attributes in page.elements:
        assert not loading & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    policies = [attributes.get("content") for tag, attributes in page.elements if tag == "meta"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in policies
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_the_page_shows_the_findings(tmp_path: Path) -> None:
    document = hostile_document(tmp_path)
    shown = " ".join("".join(Page(render_html(document)).texts).split())
    for warning in document["warnings"]:
        assert warning["code"] in shown
    assert "1 of 1 validation rows (100%) have a near-duplicate in the training set" in shown
    assert "0 of 1 target prompts (0%)" in shown
    assert "InvalidMessages: 1 Remedy: give every message a role and a content string." in shown
    assert "TemplateRefused: 1" in shown
    assert "Digest of all examples: sha256:000" in shown
    legend, *marked = re.findall(r"<mark>(.*?)</mark>", render_html(document))
    assert legend == "marked text"
    assert len(marked) == 3
    assert all(text.endswith("&lt;end&gt;") for text in marked)


def test_equal_reports_give_equal_bytes(tmp_path: Path) -> None:
    one, other = (render_html(hostile_document(tmp_path)) for _ in range(2))
    assert one == other


def test_a_rejected_dataset_has_a_page_with_the_reason() -> None:
    rows = DatasetReport(rows=3)
    rows.reject(2, RowRejected(RowReason.EMPTY_ANSWER, "messages[1].content", "no text"), {"messages": []})
    report = DatasetDocument(
        training_source={"kind": "File"}, training_rows=rows, settings={}, refusal="at most 1% of <the> rows"
    )
    shown = "".join(Page(render_html(report.to_json())).texts)
    assert "at most 1% of <the> rows" in shown
    assert "EmptyAnswer: 1" in shown
    assert "Languages" not in shown


def test_the_document_holds_only_numbers_that_json_has(tmp_path: Path) -> None:
    document = hostile_document(tmp_path)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["statistics"]["nearDuplicates"]["fraction"] == pytest.approx(1 / 44, rel=1e-4)
    assert document["statistics"]["rows"].keys() >= {"read", "heldOutCopies", "withReasoning"}


@given(values=st.lists(st.integers(0, 50_000), min_size=1, max_size=50))
@settings(max_examples=100)
def test_a_plot_stays_within_its_frame(values: list[int]) -> None:
    drawn = plot(vars(Histogram.of(np.asarray(values))))
    assert drawn.bars
    assert max(bar.height for bar in drawn.bars) == PLOT_HEIGHT
    for bar in drawn.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= PLOT_WIDTH
        assert bar.width > 0
    assert 1 <= len(drawn.ticks) <= 7


def test_a_histogram_of_one_value_is_drawn() -> None:
    flat = Histogram((5, 6), (9,), 45, 5.0, 5, 5, 5, 5, 5)
    assert plot(vars(flat)).bars[0].title == "5 tokens: 9"
