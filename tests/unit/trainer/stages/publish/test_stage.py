"""The step before PREPARE that tries the destinations, and the step after MERGE that fills them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from finetune_trainer.contract.result import PublishedResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare.destination import check_destination
from finetune_trainer.stages.publish.stage import probe, publish
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout, write_marker

from tests.support.publishing import BUCKET, S3_ENVIRONMENT, make_folder, s3_client
from tests.support.results import MERGE, PREPARE, TRAIN
from tests.support.servers.loopback import s3_server

pytestmark = pytest.mark.object_stores
MakeRun = Callable[..., RunSpec]


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "s3" / BUCKET).mkdir(parents=True)
    with s3_server(tmp_path / "s3") as endpoint:
        yield endpoint


@pytest.fixture
def run(make_run: MakeRun, run_document: dict[str, Any], tmp_path: Path, endpoint: str) -> RunSpec:
    """Return a run with a bucket and a claim as destinations."""
    artifacts = tmp_path / "workspace" / "artifacts"
    return make_run(
        output={
            **run_document["output"],
            "destination": {"kind": "Directory", "path": str(artifacts), "uri": f"s3://{BUCKET}/bot"},
            "destinations": [
                {
                    "name": "bucket",
                    "kind": "ObjectStore",
                    "uri": f"s3://{BUCKET}/bot",
                    "endpoint": endpoint,
                    "credentialsPrefix": "TEAM_",
                },
                {
                    "name": "claim",
                    "kind": "Directory",
                    "path": str(tmp_path / "claim"),
                    "uri": "pvc://team/claim/bot",
                },
            ],
        },
        limits={
            "datasetBytes": 1,
            "downloadSeconds": 60,
            "allowPrivateAddresses": True,
            "retrySeconds": 0,
        },
    )


def merged(run: RunSpec) -> Path:
    """Leave the workspace as MERGE does; return the folder of the artifacts."""
    folder = make_folder(run.output.destination.path, spec=run.spec_hash)
    manifest = json.loads((folder / "manifest.json").read_text())
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "results": results.document()}))
    layout = WorkspaceLayout(run.workspace.path)
    write_marker(layout, "train", run.spec_hash, TRAIN.document())
    write_marker(layout, "merge", run.spec_hash, MERGE.document())
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_destination_gets_the_artifacts_of_merge(run: RunSpec, tmp_path: Path, endpoint: str) -> None:
    folder = merged(run)
    result = publish(run, NullReporter(), S3_ENVIRONMENT)
    assert [(each.name, each.uri) for each in result.publications or ()] == [
        ("bucket", f"s3://{BUCKET}/bot"),
        ("claim", "pvc://team/claim/bot"),
    ]
    assert result.artifacts == MERGE.artifacts
    assert tree(tmp_path / "claim") == tree(folder)
    client = s3_client(endpoint)
    for name, content in tree(folder).items():
        assert bytes(obstore.get(client, f"bot/{name}").bytes()) == content


def test_the_probe_writes_to_every_destination_and_leaves_nothing(run: RunSpec, tmp_path: Path) -> None:
    probe(run, NullReporter(), S3_ENVIRONMENT)
    assert not (tmp_path / "claim").exists()
    assert tree(tmp_path / "s3" / BUCKET) == {}
    assert check_destination(run, WorkspaceLayout(run.workspace.path)) is None


def test_one_destination_that_fails_delays_no_other(run: RunSpec, tmp_path: Path) -> None:
    folder = merged(run)
    wrong = {**S3_ENVIRONMENT, "TEAM_AWS_SECRET_ACCESS_KEY": "wrong"}
    with pytest.raises(StageError) as caught:
        publish(run, NullReporter(), wrong)
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED
    assert caught.value.message.startswith("1 of 2 destinations have the artifacts; ")
    assert tree(tmp_path / "claim") == tree(folder)
    assert tree(tmp_path / "s3" / BUCKET) == {}, "nothing is half-published"
    again = publish(run, NullReporter(), S3_ENVIRONMENT)
    assert len(again.publications or ()) == 2


def test_a_failing_destination_ends_the_job_before_train_and_waits_after_it(run: RunSpec) -> None:
    with pytest.raises(StageError) as caught:
        probe(run, NullReporter(), {})
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED
    merged(run)
    probe(run, NullReporter(), {})


def test_what_every_destination_holds_is_not_trained_again(run: RunSpec, tmp_path: Path) -> None:
    merged(run)
    publish(run, NullReporter(), S3_ENVIRONMENT)
    shutil.rmtree(run.workspace.path)
    layout = WorkspaceLayout(run.workspace.path)
    probe(run, NullReporter(), S3_ENVIRONMENT)
    found = check_destination(run, layout)
    assert found is not None
    assert (found.prepare, found.train) == (PREPARE, TRAIN)
    assert [each.name for each in found.merge.publications or ()] == ["bucket", "claim"]
    (tmp_path / "claim" / "merged" / "config.json").unlink()
    (tmp_path / "claim" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "claim")
    probe(run, NullReporter(), S3_ENVIRONMENT)
    assert check_destination(run, layout) is None, "the claim has lost its copy"


def test_artifacts_in_the_workspace_alone_prove_nothing_about_destinations(run: RunSpec) -> None:
    merged(run)
    assert check_destination(run, WorkspaceLayout(run.workspace.path)) is None


def test_nothing_is_published_before_merge_has_finished(run: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="MERGE must have finished"):
        publish(run, NullReporter(), S3_ENVIRONMENT)
    assert not (tmp_path / "claim").exists()
