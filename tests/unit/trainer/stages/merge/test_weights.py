from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import BaseLayout, WeightFile
from finetune_trainer.model.safetensors_file import PlannedTensor
from finetune_trainer.stages.merge.update import LowRankUpdate
from finetune_trainer.stages.merge.weights import check_weights, merge_weights
from safetensors.torch import load_file, save_file

NAME = "model.safetensors"
UPDATE = LowRankUpdate(torch.ones(1, 3), torch.ones(2, 1), 1.0)


def layout(dtype: str = "F32", quantized: frozenset[str] = frozenset()) -> BaseLayout:
    tensors = (PlannedTensor("norm.weight", dtype, (2, 3)), PlannedTensor("bias", dtype, (2,)))
    return BaseLayout((WeightFile(NAME, tensors),), quantized)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return PREPARE's folder, with all floats in bf16."""
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {"norm.weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.5, -2.0])}
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / NAME)
    return folder


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_unquantized_tensors_get_the_type_and_order_of_the_base(
    source: Path, tmp_path: Path, dtype: str
) -> None:
    seen: list[int] = []
    merge_weights(source, layout(dtype), {}, tmp_path, lambda done, _total: seen.append(done))
    check_weights(tmp_path, layout(dtype))
    assert load_file(tmp_path / NAME)["bias"].tolist() == [1.5, -2.0]
    assert seen[-1] == layout(dtype).bytes


def test_an_update_without_a_quantized_weight_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="found 1 that do not: norm") as caught:
        merge_weights(source, layout(), {"norm": UPDATE}, tmp_path, lambda _done, _total: None)
    assert caught.value.reason is Reason.INTERNAL_ERROR


def test_a_tensor_that_prepare_did_not_write_is_a_mismatch(source: Path, tmp_path: Path) -> None:
    save_file({"bias": torch.ones(2)}, source / NAME)
    with pytest.raises(StageError, match=r"must hold tensor norm\.weight") as caught:
        merge_weights(source, layout(), {}, tmp_path, lambda _done, _total: None)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH
    assert not (tmp_path / NAME).exists()


def test_written_files_of_another_type_are_rejected(source: Path, tmp_path: Path) -> None:
    merge_weights(source, layout("F16"), {}, tmp_path, lambda _done, _total: None)
    with pytest.raises(StageError) as caught:
        check_weights(tmp_path, layout("F32"))
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
