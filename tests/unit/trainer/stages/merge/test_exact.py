from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import BaseLayout
from finetune_trainer.quantization.dequantize import Scratch
from finetune_trainer.stages.merge import exact
from finetune_trainer.stages.merge.exact import ExactWeights, QuantizedBase, StoredBase, WeightFiles
from finetune_trainer.stages.merge.update import LowRankUpdate
from safetensors.torch import load_file, save_file

from tests.support.exact_models import dequantized, write_checkpoint

SHAPES = {"first": (10, 30), "second": (6, 64)}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def update() -> LowRankUpdate:
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(3, 30)), generator.normal(size=(10, 3))
    return LowRankUpdate(a.astype(np.float32), b.astype(np.float32), 0.5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, BaseLayout]:
    return tmp_path, write_checkpoint(tmp_path, weights())


def test_base_and_sum_equal_the_dequantized_weight_and_its_update(
    checkpoint: tuple[Path, BaseLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = checkpoint
    tensors = load_file(folder / "model.safetensors")
    base = dequantized(tensors, "first.weight", torch.float32)
    change = update()
    expected = base + 0.5 * torch.from_numpy(change.b) @ torch.from_numpy(change.a)
    with WeightFiles(folder, ["model.safetensors"]) as files:
        found = ExactWeights(QuantizedBase(files), {"first": change}, SHAPES)
        whole = found.weight("first")
        assert torch.equal(found.weight("first", updated=False), base)
        assert torch.allclose(whole, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(found.weight("second"), dequantized(tensors, "second.weight", torch.float32))
        monkeypatch.setattr(exact, "_BLOCK_ELEMENTS", 70)
        assert [block.first_row for block in found.blocks("first")] == [0, 2, 4, 6, 8]
        assert torch.equal(found.weight("first"), whole), "blocks of any size give the same values"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_weights_are_read_in_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = weights()["first"].to(dtype)
    save_file({"first.weight": weight}, tmp_path / "a.safetensors")
    with WeightFiles(tmp_path, ["a.safetensors"]) as files:
        assert torch.equal(ExactWeights(StoredBase(files), {}, SHAPES).weight("first"), weight.float())


def test_a_weight_that_is_missing_or_of_another_shape_is_a_mismatch(tmp_path: Path) -> None:
    save_file({"first.weight": weights()["first"]}, tmp_path / "a.safetensors")
    with WeightFiles(tmp_path, ["a.safetensors"]) as files:
        assert "first.weight" in files
        with pytest.raises(StageError, match=r"a\.safetensors must hold tensor second\.weight") as caught:
            StoredBase(files).read("second.weight", (6, 64), 0, 1, Scratch())
        assert caught.value.reason is Reason.QUANTIZATION_MISMATCH
        with pytest.raises(StageError, match="shape"):
            StoredBase(files).read("first.weight", (30, 10), 0, 1, Scratch())
