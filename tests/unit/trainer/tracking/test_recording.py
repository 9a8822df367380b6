"""Trackers get the run of a finished workspace, and none of them fails or holds it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.contract.tracking import MLFLOW, MODEL_REGISTRY, TrackingResult
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.tracking.recording import record_run, send_all
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.servers.mlflow import SmallMlflow, small_mlflow
from tests.support.servers.model_registry import SmallRegistry, small_registry
from tests.support.tracking import report

MakeRun = Callable[..., RunSpec]
NOBODY = "http://127.0.0.1:9"


def tracked(make_run: MakeRun, **trackers: dict[str, Any]) -> tuple[RunSpec, WorkspaceLayout]:
    """Return a run with trackers, whose workspace has the report."""
    named = {
        "mlflow": {"experiment": "team", "anyAddress": True},
        "modelRegistry": {"registeredModel": "team", "anyAddress": True},
    }
    run = make_run(
        tracking={name: {**named[name], **members} for name, members in trackers.items()},
        limits={
            "datasetBytes": 1,
            "downloadSeconds": 60,
            "allowPrivateAddresses": False,
            "retrySeconds": 0,
        },
    )
    layout = WorkspaceLayout(run.workspace.path)
    layout.report.mkdir(parents=True, exist_ok=True)
    (layout.report / "job.json").write_text(json.dumps({**report(5), "specHash": run.spec_hash}))
    return run, layout


def test_both_trackers_get_the_run(make_run: MakeRun) -> None:
    mlflow, registry = SmallMlflow(), SmallRegistry()
    with small_mlflow(mlflow) as one, small_registry(registry) as other:
        run, layout = tracked(make_run, mlflow={"uri": one}, modelRegistry={"uri": f"{other}/"})
        found = record_run(run, layout, {})
    assert [(each.kind, each.recorded) for each in found] == [(MLFLOW, True), (MODEL_REGISTRY, True)]
    [recorded] = mlflow.runs.values()
    assert recorded.tags["finetune.uid"] == run.job.uid
    assert [name.rpartition("/")[2] for name in mlflow.files] == ["job.json"]
    assert len(registry.artifacts) == 1


def test_the_digest_of_the_published_manifest_goes_along(make_run: MakeRun) -> None:
    mlflow = SmallMlflow()
    with small_mlflow(mlflow) as address:
        run, layout = tracked(make_run, mlflow={"uri": address})
        folder = run.output.destination.path
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {"specHash": run.spec_hash, "contentDigest": "sha256:" + "5" * 64}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        record_run(run, layout, {})
    [recorded] = mlflow.runs.values()
    assert recorded.tags["finetune.manifest"].startswith("sha256:")
    assert recorded.tags["finetune.content"] == "sha256:" + "5" * 64


def test_one_tracker_that_is_down_fails_alone(make_run: MakeRun) -> None:
    with small_registry() as address:
        run, layout = tracked(make_run, mlflow={"uri": NOBODY}, modelRegistry={"uri": address})
        mlflow, registry = record_run(run, layout, {})
    assert (mlflow.recorded, registry.recorded) == (False, True)
    assert "could not send the run to MLflow: ConnectError" in (mlflow.message or "")


def test_a_job_may_not_name_a_tracker_at_a_private_address(make_run: MakeRun) -> None:
    state = SmallMlflow()
    with small_mlflow(state) as address:
        run, layout = tracked(make_run, mlflow={"uri": address, "anyAddress": False})
        [found] = record_run(run, layout, {})
    assert "must have a public address" in (found.message or "")
    assert state.requests == []


def test_a_missing_secret_is_no_failure_of_the_run(make_run: MakeRun) -> None:
    run, layout = tracked(make_run, mlflow={"uri": NOBODY, "credentialsPrefix": "FINETUNE_MLFLOW_"})
    [found] = record_run(run, layout, {})
    assert "must exist and hold MLFLOW_TRACKING_TOKEN" in (found.message or "")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"specHash": "sha256:other"}', "{"])
def test_a_missing_or_broken_report_is_said(make_run: MakeRun, content: str | None) -> None:
    run, layout = tracked(make_run, mlflow={"uri": NOBODY}, modelRegistry={"uri": NOBODY})
    (layout.report / "job.json").unlink()
    if content is not None:
        (layout.report / "job.json").write_text(content)
    found = record_run(run, layout, {})
    assert [each.kind for each in found] == [MLFLOW, MODEL_REGISTRY]
    assert {each.recorded for each in found} == {False}
    assert "the workspace must have the report on the job" in (found[0].message or "")


def test_network_settings_that_cannot_be_used_fail_no_run(make_run: MakeRun) -> None:
    run, layout = tracked(make_run, mlflow={"uri": NOBODY})
    [found] = record_run(run, layout, {"FINETUNE_CA_BUNDLE": "/nowhere/ca.pem"})
    assert not found.recorded
    assert "ca.pem" in (found.message or "") or "certificate" in (found.message or "")


def test_a_run_without_trackers_sends_nothing(make_run: MakeRun) -> None:
    run = make_run()
    assert record_run(run, WorkspaceLayout(run.workspace.path), {}) == ()


def test_a_tracker_that_never_answers_is_left_behind() -> None:
    ends = threading.Event()
    done = TrackingResult(kind=MODEL_REGISTRY, recorded=True)

    def hang() -> TrackingResult:
        ends.wait(60)
        return TrackingResult(kind=MLFLOW, recorded=True)

    before = time.monotonic()
    try:
        found = send_all({MLFLOW: hang, MODEL_REGISTRY: lambda: done}, 0.2)
    finally:
        ends.set()
    assert time.monotonic() - before < 30
    assert found[1] == done
    assert (found[0].recorded, found[0].message) == (
        False,
        "no answer within 0 s; check that the tracker is up and reachable from the cluster",
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StageError(Reason.DESTINATION_UNAVAILABLE, "it is down"), "it is down"),
        (KeyError("version"), "an answer that is not understood (KeyError: 'version')"),
    ],
)
def test_every_error_of_a_tracker_becomes_its_message(error: Exception, text: str) -> None:
    def fail() -> TrackingResult:
        raise error

    assert send_all({MLFLOW: fail}, 5) == (TrackingResult(kind=MLFLOW, recorded=False, message=text),)
