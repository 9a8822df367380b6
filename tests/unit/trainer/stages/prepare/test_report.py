from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from jsonschema import Draft202012Validator

from tests.support.repository import ROOT
from tests.support.tiny_models import conversation_rows, dataset_of, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.contract.run_spec import RunSpec


def test_a_prepared_dataset_has_a_document_a_page_and_a_head(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path
) -> None:
    targets = tmp_path / "targets.txt"
    targets.write_text("what is 3 + 1\nwrite a sonnet about autumn\n", encoding="utf-8")
    run = make_run(dataset=dataset_of(run_document, targetPromptsPath=str(targets)))
    result = prepare(run, NullReporter()).document()["prepare"]
    schema = json.loads((ROOT / "contract" / "result.schema.json").read_text())
    Draft202012Validator({**schema["$defs"]["prepare"], "$defs": schema["$defs"]}).validate(result)
    dataset = result["dataset"]
    assert dataset["format"]["name"] == "Messages"
    assert dataset["coverage"] == {"targets": 2, "covered": 1}
    assert dataset["source"]["kind"] == "File"
    assert {warning["code"] for warning in dataset["warnings"]} >= {"FewRows", "TargetPromptsUncovered"}
    layout = WorkspaceLayout(run.workspace.path)
    document = json.loads(layout.dataset_report.read_text(encoding="utf-8"))
    assert document["digest"] == dataset["digest"]
    page = layout.dataset_page.read_text(encoding="utf-8")
    assert "write a sonnet about autumn" in page
    assert "FewRows" in page
    assert not layout.dataset_parts.exists()
    assert not (layout.root / "download").exists()


def test_thresholds_decide_which_warnings_appear(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    thresholds = {
        "minimumRows": 0,
        "minimumPromptVariety": 0.0,
        "nearDuplicateFraction": 1.0,
        "leakedFraction": 1.0,
        "minimumLanguageFraction": 0.0,
    }
    run = make_run(dataset=dataset_of(run_document, thresholds=thresholds))
    assert prepare(run, NullReporter()).document()["prepare"]["dataset"]["warnings"] == []


def test_a_rejected_dataset_has_a_page_with_the_cause(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    rows = conversation_rows(20)
    rows[4]["messages"][1]["content"] = "<b>hostile</b> <|im_end|>"
    write_rows(Path(run_document["dataset"]["source"]["path"]), rows)
    run = make_run()
    with pytest.raises(StageError) as caught:
        prepare(run, NullReporter())
    assert caught.value.reason is Reason.INVALID_DATASET
    layout = WorkspaceLayout(run.workspace.path)
    document = json.loads(layout.dataset_report.read_text(encoding="utf-8"))
    assert document["refusal"] == caught.value.message
    (example,) = document["dataset"]["rejectedExamples"]["ControlTokenInContent"]
    assert example["row"] == 5
    assert "<b>hostile</b>" in example["content"]
    page = layout.dataset_page.read_text(encoding="utf-8")
    assert "ControlTokenInContent" in page
    assert "<b>hostile" not in page


def test_unreadable_target_prompts_end_the_stage_first(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path
) -> None:
    targets = tmp_path / "targets.txt"
    targets.write_bytes(b"\xff\xfe")
    run = make_run(dataset=dataset_of(run_document, targetPromptsPath=str(targets)))
    with pytest.raises(StageError, match=r"dataset\.targetPrompts must hold UTF-8 text") as caught:
        prepare(run, NullReporter())
    assert caught.value.reason is Reason.INVALID_DATASET
    assert not WorkspaceLayout(run.workspace.path).quantized_model.exists()


def test_changed_report_settings_do_not_process_the_rows_again(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    run = make_run()
    first = prepare(run, NullReporter()).document()["prepare"]["dataset"]
    table = WorkspaceLayout(run.workspace.path).training_table
    written = table.stat().st_mtime_ns
    other = make_run(dataset=dataset_of(run_document, thresholds={"minimumRows": 1000}))
    second = prepare(other, NullReporter()).document()["prepare"]["dataset"]
    assert table.stat().st_mtime_ns == written
    assert second["digest"] == first["digest"]
    few = next(warning for warning in second["warnings"] if warning["code"] == "FewRows")
    assert few["threshold"] == 1000


@pytest.mark.parametrize("asked", ["Auto", "PromptCompletion"])
def test_a_compressed_csv_of_prompts_and_completions_is_proven(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any], tmp_path: Path, asked: str
) -> None:
    path = tmp_path / "rows.csv.gz"
    lines = ["prompt,completion", *(f'"what is {n} + 1","it is {n + 1}"' for n in range(20))]
    path.write_bytes(gzip.compress("\r\n".join(lines).encode()))
    source = {"kind": "File", "path": str(path)}
    same = prepare(make_run(), NullReporter()).document()["prepare"]["dataset"]
    run = make_run(
        dataset=dataset_of(run_document, source=source, format=asked),
        workspace={"path": str(tmp_path / "other")},
    )
    dataset = prepare(run, NullReporter()).document()["prepare"]["dataset"]
    assert dataset["format"]["name"] == "PromptCompletion"
    assert dataset["digest"] == same["digest"]


def test_a_dataset_of_unknown_format_also_has_a_page(
    make_run: Callable[..., RunSpec], run_document: dict[str, Any]
) -> None:
    path = Path(run_document["dataset"]["source"]["path"])
    path.write_text('{"text": "just prose"}\n' * 20, encoding="utf-8")
    run = make_run()
    with pytest.raises(StageError, match="text") as caught:
        prepare(run, NullReporter())
    assert caught.value.reason is Reason.INVALID_DATASET
    assert (
        caught.value.message
        in json.loads(WorkspaceLayout(run.workspace.path).dataset_report.read_text(encoding="utf-8"))[
            "refusal"
        ]
    )
