"""Tensors outside of the text model are copied byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.errors import StageError
from finetune_trainer.quantization import kept_tensors
from finetune_trainer.quantization.kept_tensors import copy_tensors
from safetensors.torch import save_file

from tests.support.whole_models import bytes_of

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {
    "float": torch.tensor([[1.5, torch.nan], [torch.inf, -0.0]]),
    "half": torch.arange(7, dtype=torch.bfloat16),
    "whole": torch.arange(5),
    "flag": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
    "one": torch.tensor(2.0, dtype=torch.float64),
}

NAMES = {name: f"new.{name}" if name == "half" else name for name in TENSORS}


def test_copies_have_the_bytes_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tensors, "_AT_ONCE", 6)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    save_file({**TENSORS, "other": torch.ones(3)}, tmp_path / "in" / "m.safetensors")
    copy_tensors(tmp_path / "in" / "m.safetensors", NAMES, tmp_path / "out" / "m.safetensors")
    found, expected = bytes_of(tmp_path / "out"), bytes_of(tmp_path / "in")
    assert found == {NAMES[name]: expected[name] for name in TENSORS}


def test_no_file_remains_of_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    with pytest.raises(StageError):
        copy_tensors(tmp_path / "m.safetensors", {"a": "a"}, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
