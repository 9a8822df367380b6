from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.quantization.tied_weights import require_equal_ties
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file, save_file

from tests.support.tiny_models import write_tiny_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_head(folder: Path, change: float) -> Path:
    """Write a model with a tied config whose file holds the output head too; its row 5 differs by `change`."""
    model = write_tiny_model(folder, dtype=torch.float32, tied=True)
    tensors = load_file(model / "model.safetensors")
    head = tensors[EMBEDDING].clone()
    head[5] += change
    save_file({**tensors, HEAD: head}, model / "model.safetensors", metadata={"format": "pt"})
    return model


def quantize(model: Path, workspace: Path) -> None:
    quantize_model(DirectoryModel(model), WorkspaceLayout(workspace), NullReporter())


def test_a_head_that_differs_from_the_embedding_contradicts_a_tied_config(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="values from row 5 on") as caught:
        quantize(with_head(tmp_path / "base", 0.5), tmp_path / "workspace")
    assert caught.value.reason is Reason.INVALID_MODEL
    assert "set `tie_word_embeddings` to false" in caught.value.message


def test_a_copy_of_the_embedding_is_accepted_as_the_head(tmp_path: Path) -> None:
    quantize(with_head(tmp_path / "base", 0.0), tmp_path / "workspace")
    written = load_file(tmp_path / "workspace" / "model" / "model.safetensors")
    assert torch.equal(written[HEAD], written[EMBEDDING])


def test_tied_tensors_may_be_in_different_files_or_in_none(tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(3, 2).bfloat16()
    save_file({"a": table}, tmp_path / "one")
    other = table + torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.bfloat16)
    save_file({"b": other}, tmp_path / "two")
    files = {"a": tmp_path / "one", "b": tmp_path / "two"}
    require_equal_ties([("a", "missing"), ("missing", "b")], files)
    with pytest.raises(StageError, match="values from row 2 on"):
        require_equal_ties([("a", "b")], files)
