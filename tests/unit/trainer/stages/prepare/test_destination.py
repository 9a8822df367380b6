from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.result import PublishedResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare.destination import check_destination, check_space
from finetune_trainer.workspace.layout import WorkspaceLayout, write_marker

from tests.support.results import MERGE, PREPARE, TRAIN

MakeRun = Callable[..., RunSpec]


def block(run: RunSpec) -> None:
    """Put a file where the destination's folder must be."""
    run.output.destination.path.write_text("no folder")


def trained(run: RunSpec) -> WorkspaceLayout:
    layout = WorkspaceLayout(run.workspace.path)
    write_marker(layout, "train", run.spec_hash, TRAIN.document())
    return layout


def publish(run: RunSpec, weights: Path) -> None:
    """Publish a manifest that lists one file, a link to `weights`."""
    folder = run.output.destination.path / "merged"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(weights)
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE).document()
    files = {"merged/model.safetensors": {"digest": "sha256:0", "bytes": 1}}
    manifest = {"specHash": run.spec_hash, "results": results, "files": files}
    (folder.parent / "manifest.json").write_text(json.dumps(manifest))


def test_a_destination_that_works_is_only_tried(make_run: MakeRun) -> None:
    run = make_run()
    assert check_destination(run, WorkspaceLayout(run.workspace.path)) is None
    assert not run.output.destination.path.exists()


def test_a_destination_that_does_not_work_ends_the_job_before_a_gpu_is_requested(make_run: MakeRun) -> None:
    run = make_run()
    block(run)
    with pytest.raises(StageError) as caught:
        check_destination(run, WorkspaceLayout(run.workspace.path))
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE


def test_after_the_training_the_destination_is_left_to_merge(make_run: MakeRun) -> None:
    """The status of a job can be lost while its destination does not work."""
    run = make_run()
    block(run)
    layout = trained(run)
    assert check_destination(run, layout) is None
    check_space(run, layout, 2**60)


def test_a_published_file_that_the_storage_does_not_return_is_tried_again(make_run: MakeRun) -> None:
    """The first bytes of a process's memory cannot be read: the kernel reports an input/output error."""
    run = make_run()
    publish(run, Path("/proc/self/mem"))
    layout = WorkspaceLayout(run.workspace.path)
    with pytest.raises(StageError, match="Input/output error") as caught:
        check_destination(run, layout)
    assert caught.value.reason is Reason.INTERNAL_ERROR, "it is the retryable reason"
    assert check_destination(run, trained(run)) is None


def test_too_little_space_ends_the_job_before_a_gpu_is_requested(make_run: MakeRun) -> None:
    run = make_run()
    layout = WorkspaceLayout(run.workspace.path)
    check_space(run, layout, 1)
    with pytest.raises(StageError) as caught:
        check_space(run, layout, 2**60)
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE


def test_artifacts_that_do_not_fit_into_the_workspace_before_copies_name_it(
    make_run: MakeRun, run_document: dict[str, Any], tmp_path: Path
) -> None:
    copies = [{"name": "claim", "kind": "Directory", "path": str(tmp_path / "claim"), "uri": "pvc://a/b"}]
    run = make_run(output={**run_document["output"], "destinations": copies})
    with pytest.raises(StageError) as caught:
        check_space(run, WorkspaceLayout(run.workspace.path), 1 << 60)
    assert caught.value.reason is Reason.WORKSPACE_FULL
    assert "staged in the workspace" in caught.value.message
