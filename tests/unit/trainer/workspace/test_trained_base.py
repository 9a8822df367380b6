from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.layout import WorkspaceLayout, write_marker
from finetune_trainer.workspace.trained_base import record_trained_base, require_trained_base

SPEC = "sha256:" + "0" * 64


def prepared(layout: WorkspaceLayout, digest: str) -> None:
    write_marker(layout, "prepare", SPEC, {"model": {"digest": digest}})


def test_the_base_of_the_training_is_the_only_one_that_is_accepted(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    prepared(layout, "sha256:a")
    record_trained_base(layout, SPEC)
    require_trained_base(layout, SPEC, "sha256:a")
    with pytest.raises(StageError, match="found sha256:b") as caught:
        require_trained_base(layout, SPEC, "sha256:b")
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def test_a_training_does_not_go_on_with_another_base(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    prepared(layout, "sha256:a")
    record_trained_base(layout, SPEC)
    prepared(layout, "sha256:b")
    with pytest.raises(StageError, match="trained on, sha256:a"):
        record_trained_base(layout, SPEC)


def test_a_workspace_of_an_older_trainer_passes(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    record_trained_base(layout, SPEC)
    require_trained_base(layout, SPEC, "sha256:a")
