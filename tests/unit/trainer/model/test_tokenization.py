from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.model.tokenization import tokenization_digest

from tests.support.workspaces import small_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_files_that_make_no_tokens_do_not_count(folder: Path) -> None:
    digest = tokenization_digest(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    changed = {**config, "chat_template": "unused beside the file", "auto_map": {"AutoTokenizer": "x.py"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(changed, indent=7))
    assert tokenization_digest(folder) == digest


def test_a_template_counts_in_either_place_and_the_file_comes_first(folder: Path) -> None:
    digest = tokenization_digest(folder)
    path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    text = path.read_text()
    path.unlink()
    assert tokenization_digest(folder) != digest
    config_path.write_text(json.dumps({**config, "chat_template": text}))
    assert tokenization_digest(folder) == digest
    config_path.write_text(json.dumps({**config, "chat_template": text + " "}))
    assert tokenization_digest(folder) != digest


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json"]
)
def test_every_file_of_the_tokenizer_counts(folder: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    document = json.loads((other / name).read_text()) if (other / name).exists() else {}
    (other / name).write_text(json.dumps({**document, "changed": True}))
    assert tokenization_digest(other) != tokenization_digest(folder)


def test_a_folder_without_a_tokenizer_has_a_digest(tmp_path: Path) -> None:
    assert tokenization_digest(tmp_path).startswith("sha256:")
