from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge import tensor_files
from finetune_trainer.stages.merge.tensor_files import TensorFiles, row_blocks
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

MATRIX = torch.arange(35, dtype=torch.float32).reshape(7, 5) / 3
OTHERS = {
    "empty": torch.zeros(0, 4),
    "half": MATRIX.half(),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "vector": torch.tensor([1, 2, 3], dtype=torch.int64),
    "cube": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
}


@pytest.fixture
def files(tmp_path: Path) -> TensorFiles:
    save_file({"matrix": MATRIX}, tmp_path / "a.safetensors")
    save_file(OTHERS, tmp_path / "b.safetensors")
    return TensorFiles(tmp_path)


@pytest.mark.parametrize("elements", [1, 10, 11, 1000])
def test_blocks_are_the_rows_in_order_whatever_their_size(
    files: TensorFiles, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "ELEMENTS_AT_ONCE", elements)
    with files:
        found = list(files.blocks("matrix"))
    assert torch.equal(torch.cat([rows for _, rows in found]), MATRIX)
    assert [first for first, _ in found] == [first for first, _ in row_blocks(7, 5)]
    assert all(rows.numel() <= max(elements, 5) for _, rows in found)
    assert files.bytes_read["matrix"] == files.bytes("matrix") == 140


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_every_shape_and_type_is_read_as_float32(files: TensorFiles, name: str) -> None:
    with files:
        whole = files.whole(name)
        blocks = [rows.flatten() for _, rows in files.blocks(name)]
    assert whole.dtype == torch.float32
    assert torch.equal(whole, OTHERS[name].float())
    assert torch.equal(torch.cat([torch.empty(0), *blocks]), OTHERS[name].float().flatten())


def test_single_rows_are_read_alone(files: TensorFiles) -> None:
    with files:
        assert torch.equal(files.rows("half", [6, 0]), MATRIX.half().float()[[6, 0]])
        assert files.rows("half", []).shape == (0, 5)
    assert files.bytes_read["half"] == 2 * 5 * 2
    assert files.bytes_read["matrix"] == 0


def test_a_missing_tensor_has_a_reason(files: TensorFiles) -> None:
    assert "lm_head.weight" not in files
    assert files.names == {"matrix", *OTHERS}
    with files, pytest.raises(StageError, match=r"the tensor lm_head\.weight .* found none") as caught:
        files.whole("lm_head.weight")
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


def test_a_type_that_torch_cannot_compute_with_has_a_reason(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with TensorFiles(tmp_path) as files, pytest.raises(StageError, match=r"found F8_E4M3 in x"):
        files.whole("x")
