from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.result import PublishedResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.workspace.completed import published_results, trained_result
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import WorkspaceLayout, write_marker

from tests.support.results import MERGE, PREPARE, TRAIN

PUBLISHED = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE)


def test_a_workspace_proves_the_training_of_its_spec_alone(
    make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    run, layout = make_run(), WorkspaceLayout(tmp_path / "workspace")
    write_marker(layout, "merge", run.spec_hash, MERGE.document())
    assert trained_result(run, layout) is None
    write_marker(layout, "train", "sha256:" + "1" * 64, TRAIN.document())
    assert trained_result(run, layout) is None
    write_marker(layout, "train", run.spec_hash, {"steps": 2})
    assert trained_result(run, layout) is None
    write_marker(layout, "train", run.spec_hash, TRAIN.document())
    assert trained_result(run, layout) == TRAIN


def publish(run: RunSpec, **changes: Any) -> Path:
    folder = run.output.destination.path
    (folder / "merged").mkdir(parents=True)
    weights = folder / "merged" / "model.safetensors"
    weights.write_bytes(b"weights")
    files = {"merged/model.safetensors": {"digest": file_digest(weights), "bytes": 7}}
    manifest = {"specHash": run.spec_hash, "results": PUBLISHED.document(), "files": files, **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_manifest_with_all_its_files_proves_the_results(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    publish(run)
    assert published_results(run) == PUBLISHED


@pytest.mark.parametrize(
    "changes",
    [
        {"specHash": "sha256:" + "1" * 64},
        {"results": {"prepare": PREPARE.document(), "train": TRAIN.document()}},
        {"results": None},
        {"files": None},
        {"files": {"merged/absent": {"digest": "sha256:0", "bytes": 0}}},
    ],
)
def test_an_incomplete_or_wrong_manifest_is_invalid(
    make_run: Callable[..., RunSpec], changes: dict[str, Any]
) -> None:
    run = make_run()
    publish(run, **changes)
    assert published_results(run) is None


def test_a_changed_file_or_a_damaged_manifest_is_invalid(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    folder = publish(run)
    (folder / "merged" / "model.safetensors").write_bytes(b"Weights")
    assert published_results(run) is None
    for text in ("{", "[]"):
        (folder / "manifest.json").write_text(text)
        assert published_results(run) is None
