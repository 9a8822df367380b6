from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.artifact import copy_adapter, copy_small_files
from finetune_trainer.workspace.layout import WorkspaceLayout


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type":  "llama"}\n')
    (folder / "layout.json").write_text("{}")
    (folder / "README.md").write_text("the base's card")
    (folder / "folder").mkdir()
    (tmp_path / "artifact").mkdir()
    return folder


def test_small_files_are_copied_byte_for_byte_and_the_bases_card_is_renamed(
    base: Path, tmp_path: Path
) -> None:
    copy_small_files(base, tmp_path / "artifact")
    found = {path.name: path.read_text() for path in (tmp_path / "artifact").iterdir()}
    assert found == {"config.json": '{"model_type":  "llama"}\n', "README.base.md": "the base's card"}


def test_a_config_of_a_quantized_base_is_not_published(base: Path, tmp_path: Path) -> None:
    (base / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    with pytest.raises(StageError) as caught:
        copy_small_files(base, tmp_path / "artifact")
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


def test_the_adapter_is_copied_as_train_saved_it(tmp_path: Path) -> None:
    workspace = WorkspaceLayout(tmp_path)
    workspace.adapter.mkdir(parents=True)
    (workspace.adapter / "adapter_config.json").write_text("{}")
    copy_adapter(workspace, tmp_path / "copy")
    assert (tmp_path / "copy" / "adapter_config.json").read_text() == "{}"
