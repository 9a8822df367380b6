from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.report.curve import training_report
from finetune_trainer.report.job_document import Failure, Parts, job_report
from finetune_trainer.report.job_page import render_job_page, write_job_report
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.results import PREPARE, PROVEN, TRAIN, fixture

Runs = Callable[..., RunSpec]
_HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x1b{{ 7 * 7 }}"
_ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "strong", "br", "a", "dl", "div", "dt", "dd",
    "small", "figure", "figcaption", "svg", "line", "rect", "circle", "polyline", "text", "table", "caption", "tr", "th", "td",
    "code", "bdi", "pre", "mark", "section", "ul", "li", "details", "summary", "span",
}  # fmt: skip


class Elements(HTMLParser):
    """Collects the elements and attributes of a page, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"meta", "br", "line", "rect", "circle", "polyline"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"line", "rect", "circle", "polyline"}:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def full_parts(text: str = "text", **changes: Any) -> Parts:
    """Return parts with every section, with `text` wherever a user or a server chooses it."""
    prepare, merge = PREPARE.document(), PROVEN.document()
    prepare["dataset"]["example"] = {"row": 1, "learned": text}
    prepare["dataset"]["source"] = {"kind": text}
    prepare["dataset"]["format"] = {"name": "Messages", "why": text}
    prepare["dataset"]["warnings"] = [{"code": "FewRows", "value": 1, "threshold": 2, "message": text}, text]
    merge["verification"] |= {"prompt": text, "answer": text}
    merge["artifacts"][0]["uri"] = text
    answer = {"text": text, "ended": False}
    sample = {"prompt": text, "row": 3, "reference": text, "base": answer, "tuned": answer, "reason": None}
    unanswered = {**sample, "row": None, "base": None, "tuned": None, "reason": text}
    history = [{"step": n, "loss": 3 - n / 9, "learning_rate": 0.1, "grad_norm": 1.0} for n in range(1, 9)]
    time = "2026-01-01T00:00:00.000Z"
    return Parts(
        **{
            "results": {"prepare": prepare, "train": fixture("train-evaluated")["train"], "merge": merge},
            "answers": {"samples": [sample, unanswered]},
            "curve": training_report("job", history, [(4, 2.5)]),
            "timeline": [
                {"stage": "Prepare", "attempt": 0, "startTime": time, "completionTime": "2026-01-01T00:01:00.000Z",
                 "outcome": "Succeeded", "reason": None},
                {"stage": text, "attempt": text, "startTime": "2026-01-01T00:01:00.000Z", "outcome": text, "reason": text},
            ],
            "logs": [
                {"stage": "Train", "step": "train", "attempt": 0, "bytes": 99, "first": text, "last": text, "leftOutBytes": 9},
            ],
            **changes,
        }
    )  # fmt: skip


def page(run: RunSpec, parts: Parts, base: str = "tiny") -> str:
    return render_job_page(
        json.loads(json.dumps(job_report(run, parts, base))), ["dataset.html", "merge.html"]
    )


def test_the_page_of_a_finished_job_has_every_part(make_run: Runs) -> None:
    text = page(make_run(), full_parts())
    for part in (
        "Change of the loss",
        "Loss of the tuned model minus that of the base",
        "Learned text of row 1",
        "Training loss, nats per learned token",
        "The dots are losses on held-out rows",
        "Held-out row 3",
        "Answer of the published files",
        "Published folders",
        "Attempts of the stages",
        "Provenance",
        '<a href="dataset.html">Dataset</a>',
    ):
        assert part in text, part
    assert text == page(make_run(), full_parts()), "equal documents give equal bytes"


@pytest.mark.parametrize("name", ["train-measured", "train-laddered", "train-selected", "train-succeeded"])
def test_results_of_every_version_have_a_page(make_run: Runs, name: str) -> None:
    parts = full_parts()
    results = {**parts.results, "train": fixture(name)["train"]}
    text = page(make_run(), Parts(results=results))
    assert not Elements(text).open
    assert "There are no losses by step." in text
    assert "None" not in text


def test_measured_memory_and_rungs_that_did_not_fit_are_shown(make_run: Runs) -> None:
    text = page(make_run(), full_parts(results={"train": TRAIN.document()}))
    assert "Measured peaks of the GPU&#39;s memory" in text
    assert "GiB" in text
    assert "rung that did not fit" in page(
        make_run(), full_parts(results={"train": fixture("train-laddered")["train"]})
    )


def test_a_job_that_failed_in_prepare_has_a_page_with_the_cause_and_the_remedies(make_run: Runs) -> None:
    rows = {
        "rows": 4,
        "kept": 1,
        "duplicates": 0,
        "rejected": {"NoAssistantTurn": 3},
        "remedies": {"NoAssistantTurn": "add"},
    }
    dataset = {"dataset": rows, "refusal": "too many rows", "sources": {"training": {"kind": "File"}}}
    failure = Failure("Prepare", "InvalidDataset", "too many rows")
    text = page(make_run(), Parts(dataset=dataset, failure=failure))
    assert "Failed in Prepare: InvalidDataset" in text
    assert text.count("too many rows") == 1
    assert "rejected: NoAssistantTurn" in text
    assert "because the job ended in Prepare" in text
    assert "Nothing is published." in text
    assert not Elements(text).open
    earlier = page(make_run(), Parts(failure=Failure("Prepare", "SourceNotFound", "no such file")))
    assert "The job ended before the dataset was read." in earlier


def test_nothing_that_others_write_becomes_markup_or_is_run(make_run: Runs) -> None:
    run = make_run(job={"namespace": _HOSTILE, "name": _HOSTILE, "uid": "u"})
    failure = Failure(_HOSTILE, _HOSTILE, _HOSTILE)
    for parts in (full_parts(_HOSTILE), full_parts(_HOSTILE, failure=failure)):
        text = page(run, parts, _HOSTILE)
        found = Elements(text)
        assert found.tags <= _ALLOWED, found.tags - _ALLOWED
        assert not [name for name in found.attributes if name.startswith("on") or name in {"src", "style"}]
        assert not found.open
        assert "\u202e" not in text
        assert "\x1b" not in text
        assert "{{ 7 * 7 }}" in text


def test_the_page_needs_no_network_and_no_script(make_run: Runs) -> None:
    text = page(make_run(), full_parts())
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text


def test_the_document_and_the_page_are_written_side_by_side(make_run: Runs, tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    layout.report.mkdir()
    layout.dataset_page.write_text("<!doctype html>")
    write_job_report(make_run(), layout, failure=Failure("Prepare", "InvalidDataset", "no rows"))
    assert json.loads((layout.report / "job.json").read_text())["state"] == "Failed"
    written = (layout.report / "index.html").read_text()
    assert 'href="dataset.html"' in written
    assert "merge.html" not in written


def test_the_page_shows_the_logs_and_opens_those_of_the_failed_stage(make_run: Runs) -> None:
    log = {
        "stage": "Prepare",
        "step": "prepare",
        "attempt": 0,
        "bytes": 5,
        "first": "a\tb\nc",
        "last": "",
        "leftOutBytes": 0,
    }
    logs = [log, {**log, "stage": "Merge", "step": "merge"}]
    report = job_report(
        make_run(), Parts(failure=Failure("Prepare", "InvalidDataset", "no"), logs=logs), "tiny"
    )
    text = render_job_page(report, (), ["prepare-0.log"])
    assert "a\tb\nc" in text
    assert text.count("<details open>") == 2, "that of the failed stage, and the last one"
    assert '<a href="prepare-0.log">' in text
    assert "merge-0.log" not in text, "no link to a file that is not beside the page"


def test_a_log_of_another_tool_cannot_leave_its_place_in_the_page(make_run: Runs) -> None:
    text = page(make_run(), full_parts(_HOSTILE + "</pre></details>\x00"))
    assert Elements(text).tags <= _ALLOWED
    assert not Elements(text).open
    assert "\x00" not in text
    assert "\x1b" not in text


def test_the_page_of_a_workspace_has_its_logs(make_run: Runs, tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    layout.logs.mkdir()
    layout.log("prepare", 0).write_text("the first line\n" + "x" * 40_000 + "\nthe last line\n")
    write_job_report(make_run(), layout)
    text = (layout.report / "index.html").read_text()
    assert "the first line" in text
    assert "the last line" in text
    assert "bytes are left out" in text
    log = json.loads((layout.report / "job.json").read_text())["logs"][0]
    assert (log["step"], log["attempt"], log["bytes"]) == ("prepare", 0, 40_030)


def test_the_page_compares_the_estimated_memory_with_the_measured_one(make_run: Runs) -> None:
    estimate = {
        "peakBytes": 2**31,
        "deviceBytes": 3 * 2**30,
        "lowBytes": 2**30,
        "highBytes": 2**32,
        "bottleneck": "Loss",
    }
    results = {"train": {**TRAIN.document(), "memory": {"allocatedBytes": 2**30}}}
    text = page(make_run(memoryEstimate=estimate), full_parts(results=results))
    assert (
        '<td>tensors</td><td class="n">2.00 GiB</td><td class="n">1.00 GiB</td><td class="n">50.0%</td>'
        in text
    )
    assert '<td class="n">3.00 GiB</td><td class="n">not measured</td>' in text
    assert "expected in Loss, between 1.00 GiB and 4.00 GiB" in text
    assert "tensors, estimated" in text
    assert "The trainer got no estimate" not in text
    before_train = page(make_run(memoryEstimate=estimate), Parts())
    assert before_train.count("not measured") == 2
