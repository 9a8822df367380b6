from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import BaseLayout
from finetune_trainer.quantization.dequantize import Scratch
from finetune_trainer.stages.merge.exact import (
    BaseWeights,
    QuantizedBase,
    StoredBase,
    WeightFiles,
    read_block,
)
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


def whole(
    base: BaseWeights, module: str, change: LowRankUpdate | None = None, rows_at_once: int = 100
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all rows of base and sum, read in blocks."""
    shape, scratch = SHAPES[module], Scratch()
    parts = []
    for first in range(0, shape[0], rows_at_once):
        rows = min(rows_at_once, shape[0] - first)
        block = read_block(base, f"{module}.weight", shape, change, first, rows, scratch)
        parts.append((torch.from_numpy(block.base.copy()), torch.from_numpy(block.exact.copy())))
    before, after = zip(*parts, strict=True)
    return torch.cat(before), torch.cat(after)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, BaseLayout]:
    return tmp_path, write_checkpoint(tmp_path, weights())


def test_base_and_sum_equal_the_dequantized_weight_and_its_update(
    checkpoint: tuple[Path, BaseLayout],
) -> None:
    folder, _ = checkpoint
    tensors = load_file(folder / "model.safetensors")
    base = dequantized(tensors, "first.weight", torch.float32)
    change = update()
    expected = base + 0.5 * torch.from_numpy(change.b) @ torch.from_numpy(change.a)
    with WeightFiles(folder, ["model.safetensors"]) as files:
        before, after = whole(QuantizedBase(files), "first", change)
        assert torch.equal(before, base)
        assert torch.allclose(after, expected, rtol=1e-6, atol=1e-6)
        plain = dequantized(tensors, "second.weight", torch.float32)
        assert all(torch.equal(part, plain) for part in whole(QuantizedBase(files), "second"))
        for rows in (1, 2, 7):
            blocks = whole(QuantizedBase(files), "first", change, rows)
            assert torch.equal(blocks[0], before)
            assert torch.equal(blocks[1], after), "blocks of any size give the same values"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_weights_are_read_in_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = weights()["first"].to(dtype)
    save_file({"first.weight": weight}, tmp_path / "a.safetensors")
    with WeightFiles(tmp_path, ["a.safetensors"]) as files:
        assert torch.equal(whole(StoredBase(files), "first")[0], weight.float())


def test_a_weight_that_is_missing_or_of_another_shape_is_a_mismatch(tmp_path: Path) -> None:
    save_file({"first.weight": weights()["first"]}, tmp_path / "a.safetensors")
    with WeightFiles(tmp_path, ["a.safetensors"]) as files:
        assert "first.weight" in files
        with pytest.raises(StageError, match=r"a\.safetensors must hold tensor second\.weight") as caught:
            StoredBase(files).read("second.weight", (6, 64), 0, 1, Scratch())
        assert caught.value.reason is Reason.QUANTIZATION_MISMATCH
        with pytest.raises(StageError, match="shape"):
            StoredBase(files).read("first.weight", (30, 10), 0, 1, Scratch())
