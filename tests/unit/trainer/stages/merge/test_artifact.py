from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.stages.merge.artifact import copy_adapter, copy_small_files
from finetune_trainer.workspace.layout import WorkspaceLayout

CONFIG = '{"model_type":  "llama", "torch_dtype": "bfloat16", "eos_token_id": 0}\n'


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    (folder / "layout.json").write_text("{}")
    (folder / "README.md").write_text("the base's card")
    (folder / "folder").mkdir()
    (tmp_path / "artifact").mkdir()
    return folder


def test_small_files_are_copied_byte_for_byte_and_the_bases_card_is_renamed(
    base: Path, tmp_path: Path
) -> None:
    copy_small_files(base, tmp_path / "artifact", "BFloat16", [0])
    found = {path.name: path.read_text() for path in (tmp_path / "artifact").iterdir()}
    assert found == {"config.json": CONFIG, "README.base.md": "the base's card"}


def test_what_a_server_must_read_is_changed(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text("trained")
    (base / "tokenizer_config.json").write_text('{"chat_template": "stale"}')
    (base / "config.json").write_text('{"eos_token_id": 0, "quantization_config": null}')
    copy_small_files(base, tmp_path / "artifact", "BFloat16", [2])
    found = {path.name: path.read_text() for path in (tmp_path / "artifact").iterdir()}
    assert json.loads(found["config.json"]) == {"eos_token_id": 0, "torch_dtype": "bfloat16"}
    assert json.loads(found["tokenizer_config.json"]) == {}
    assert json.loads(found["generation_config.json"]) == {"eos_token_id": [0, 2]}


def test_the_adapter_comes_with_the_tokenizer_template_and_ends_of_its_training(tmp_path: Path) -> None:
    workspace = WorkspaceLayout(tmp_path)
    workspace.adapter.mkdir(parents=True)
    (workspace.adapter / "adapter_config.json").write_text("{}")
    workspace.base.mkdir()
    small = {
        "config.json": CONFIG,
        "tokenizer_config.json": '{"chat_template": "stale"}',
        "tokenizer.json": "{}",
        "spiece.model": "pieces",
        "chat_template.jinja": "trained",
        "generation_config.json": '{"eos_token_id": 0}',
        "README.md": "the base's card",
        "layout.json": "{}",
    }
    for name, text in small.items():
        (workspace.base / name).write_text(text)
    copy_adapter(workspace, tmp_path / "copy", [2])
    found = {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()}
    assert found.keys() == small.keys() - {"config.json", "README.md", "layout.json"} | {
        "adapter_config.json"
    }
    assert json.loads(found["tokenizer_config.json"]) == {}
    assert json.loads(found["generation_config.json"]) == {"eos_token_id": [0, 2]}
    assert found["adapter_config.json"] == "{}"
