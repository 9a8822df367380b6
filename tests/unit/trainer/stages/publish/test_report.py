"""The step that copies the report of a job that has ended, also of one that has failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.publish.report import publish_report
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from finetune_trainer.workspace.timeline import begun, write_timeline

from tests.support.servers.loopback import free_port
from tests.support.servers.mlflow import call, small_mlflow

MakeRun = Callable[..., RunSpec]
START = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def layout(tmp_path: Path) -> WorkspaceLayout:
    """A workspace in which TRAIN was killed, so that no trainer has recorded its end."""
    layout = WorkspaceLayout(tmp_path / "workspace")
    layout.logs.mkdir(parents=True)
    layout.report.mkdir()
    layout.log("train", 0).write_text("step 7 of 9\n")
    (layout.report / "dataset.html").write_text("<p>dataset</p>")
    (layout.report / "index.html").write_text("written before the end")
    write_timeline(layout, begun([], "Train", 0, START))
    return layout


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    places = [
        {"name": name, "kind": "Directory", "path": str(tmp_path / name), "uri": f"pvc://team/{name}"}
        for name in ("first", "second")
    ]
    end = {
        "stage": "Train",
        "attempt": 0,
        "outcome": "Failed",
        "reason": "HostOutOfMemory",
        "completionTime": START,
    }
    failure = {"stage": "Train", "reason": "HostOutOfMemory", "message": "killed for its <memory>"}
    return {"outcome": "Failed", "failure": failure, "attempts": [end], "destinations": places}


@pytest.fixture
def run(make_run: MakeRun, layout: WorkspaceLayout, task: dict[str, Any]) -> RunSpec:
    return make_run(workspace={"path": str(layout.root)}, report=task)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_place_gets_page_json_logs_and_a_manifest(run: RunSpec, tmp_path: Path) -> None:
    publish_report(run, NullReporter(), {})
    for name in ("first", "second"):
        folder = tmp_path / name / "report"
        assert names(folder) == ["dataset.html", "index.html", "job.json", "train-0.log"]
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["kind"] == "Report"
        assert manifest["files"].keys() == {f"report/{file}" for file in names(folder)}


def test_the_page_has_the_end_that_only_the_operator_knows(run: RunSpec, tmp_path: Path) -> None:
    publish_report(run, NullReporter(), {})
    page = (tmp_path / "first" / "report" / "index.html").read_text()
    assert "Failed in Train: HostOutOfMemory" in page
    assert "killed for its &lt;memory&gt;" in page
    assert "step 7 of 9" in page
    assert '<a href="train-0.log">whole log</a>' in page
    document = json.loads((tmp_path / "first" / "report" / "job.json").read_text())
    assert [(entry["startTime"], entry["outcome"]) for entry in document["timeline"]] == [(START, "Failed")]


def test_a_repeated_step_replaces_its_own_report(
    run: RunSpec, layout: WorkspaceLayout, tmp_path: Path
) -> None:
    publish_report(run, NullReporter(), {})
    layout.log("merge", 0).write_text("more\n")
    publish_report(run, NullReporter(), {})
    assert (tmp_path / "first" / "report" / "merge-0.log").read_text() == "more\n"
    assert not list((tmp_path / "first").glob(".finetune*"))


def test_a_place_that_fails_does_not_keep_the_report_from_the_others(run: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "first").write_text("in the way")
    with pytest.raises(StageError, match="1 of 2 destinations have the report") as caught:
        publish_report(run, NullReporter(), {})
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert (tmp_path / "second" / "report" / "index.html").is_file()


def test_links_and_other_files_of_the_workspace_are_not_copied(
    run: RunSpec, layout: WorkspaceLayout, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("credentials")
    (layout.report / "linked.html").symlink_to(secret)
    layout.log("prepare", 0).symlink_to(secret)
    (layout.report / "tool.exe").write_text("no report")
    publish_report(run, NullReporter(), {})
    copied = names(tmp_path / "first" / "report")
    assert not {"linked.html", "prepare-0.log", "tool.exe"} & set(copied)


def test_a_job_that_failed_before_its_first_report_has_a_page(
    make_run: MakeRun, task: dict[str, Any], tmp_path: Path
) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    publish_report(make_run(workspace={"path": str(root)}, report=task), NullReporter(), {})
    assert "No logs are known." in (tmp_path / "first" / "report" / "index.html").read_text()


def test_the_step_needs_its_member_of_the_run_spec(make_run: MakeRun, layout: WorkspaceLayout) -> None:
    with pytest.raises(StageError, match="found none") as caught:
        publish_report(make_run(workspace={"path": str(layout.root)}), NullReporter(), {})
    assert caught.value.reason is Reason.INVALID_RUN_SPEC


def tracked_run(make_run: MakeRun, layout: WorkspaceLayout, task: dict[str, Any], address: str) -> RunSpec:
    mlflow = {"uri": address, "experiment": "team", "anyAddress": True}
    return make_run(workspace={"path": str(layout.root)}, report=task, tracking={"mlflow": mlflow})


def test_a_tracker_gets_a_failed_run_with_its_reason_and_its_report(
    make_run: MakeRun, layout: WorkspaceLayout, task: dict[str, Any]
) -> None:
    with small_mlflow() as address:
        run = tracked_run(make_run, layout, {**task, "destinations": []}, address)
        found = publish_report(run, NullReporter(), {})
        assert found.report is not None
        (record,) = found.report.tracking
        assert (record.recorded, record.model, found.report.failure) == (True, None, None)
        stored = call(address, f"runs/get?run_id={record.run}")["run"]
    tags = {each["key"]: each["value"] for each in stored["data"]["tags"]}
    assert stored["info"]["status"] == "FAILED"
    assert (tags["finetune.failure.stage"], tags["finetune.failure.reason"]) == ("Train", "HostOutOfMemory")
    assert tags["finetune.failure.message"] == "killed for its <memory>"


def test_a_destination_that_fails_does_not_hide_what_the_tracker_has(
    make_run: MakeRun, layout: WorkspaceLayout, task: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "first").write_text("a file is in the way")
    with small_mlflow() as address:
        found = publish_report(tracked_run(make_run, layout, task, address), NullReporter(), {})
    assert found.report is not None
    assert [each.recorded for each in found.report.tracking] == [True]
    assert found.report.failure is not None
    assert found.report.failure.message.startswith("1 of 2 destinations have the report; ")
    assert names(tmp_path / "second")


def test_a_tracker_that_is_down_does_not_fail_the_copies(
    make_run: MakeRun, layout: WorkspaceLayout, task: dict[str, Any], tmp_path: Path
) -> None:
    run = tracked_run(make_run, layout, task, f"http://127.0.0.1:{free_port()}")
    run = run.model_copy(update={"limits": run.limits.model_copy(update={"retry_seconds": 0})})
    found = publish_report(run, NullReporter(), {})
    assert found.report is not None
    assert [each.recorded for each in found.report.tracking] == [False]
    assert found.report.failure is None
    assert names(tmp_path / "first")
