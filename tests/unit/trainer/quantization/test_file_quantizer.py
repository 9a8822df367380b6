from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantization.file_quantizer import FileQuantizer
from safetensors.torch import load_file, save_file


def test_named_tensors_become_nf4_other_floats_bf16_and_the_rest_is_copied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 32).bfloat16()
    tensors = {"w": weight, "norm": torch.tensor([1.0, 2.5]), "steps": torch.tensor([7, 2**40])}
    save_file(tensors, tmp_path / "in")
    seen: list[int] = []
    with FileQuantizer(2) as quantizer:
        entries = quantizer.quantize(tmp_path / "in", {"w"}, tmp_path / "out", seen.append)
    found = load_file(tmp_path / "out")
    packed, _ = quantize_4bit(weight, quant_type="nf4", blocksize=64)
    assert torch.equal(found["w"], packed)
    assert found["norm"].dtype == torch.bfloat16
    assert found["steps"].tolist() == [7, 2**40]
    assert seen[-1] == sum(entry.elements for entry in entries) == 24 * 32 + 4


@pytest.mark.parametrize(("name", "place"), [("w", [1, 3]), ("norm", [1])])
def test_a_value_that_is_not_finite_is_named_and_no_file_remains(
    tmp_path: Path, name: str, place: list[int]
) -> None:
    tensors = {"w": torch.ones(4, 8), "norm": torch.ones(2)}
    tensors[name][tuple(place)] = float("inf")
    save_file(tensors, tmp_path / "in")
    with FileQuantizer(1) as quantizer, pytest.raises(StageError) as caught:
        quantizer.quantize(tmp_path / "in", {"w"}, tmp_path / "out", lambda _done: None)
    assert caught.value.reason is Reason.INVALID_MODEL
    assert f"tensor {name} at {place}" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
