"""The values equal those of bitsandbytes bit for bit, also for shapes whose rows begin inside a block."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import TensorReader
from finetune_trainer.quantization.dequantize import Nf4Weight, Scratch
from safetensors.torch import save_file

from tests.support.exact_models import bits, dequantized, quantized_tensors

_NAME = "w.weight"
_STATE = f"{_NAME}.quant_state.bitsandbytes__nf4"


def open_weight(reader: TensorReader, elements: int) -> Nf4Weight:
    return Nf4Weight(reader, {entry.name: entry for entry in reader.entries}, _NAME, elements)


def write(folder: Path, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(shape[0])
    tensors = quantized_tensors(_NAME, torch.randn(shape) * torch.logspace(-3, 2, shape[0])[:, None])
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize("shape", [(8, 64), (3, 100), (129, 130), (5, 6), (300, 192), (2, 2), (2, 16386)])
def test_all_values_equal_those_of_bitsandbytes_in_float32(tmp_path: Path, shape: tuple[int, int]) -> None:
    tensors = write(tmp_path, shape)
    expected = dequantized(tensors, _NAME, torch.float32)
    with TensorReader(tmp_path / "model.safetensors") as reader:
        weight = open_weight(reader, expected.numel())
        found = weight.read(0, expected.numel(), Scratch())
        assert np.array_equal(found.view(np.int32), bits(expected).reshape(-1))
        scratch = Scratch()
        for row in range(shape[0]):
            part = weight.read(row * shape[1], shape[1], scratch)
            assert np.array_equal(part.view(np.int32), bits(expected[row])), row


def test_odd_rows_equal_the_formula(tmp_path: Path) -> None:
    """bitsandbytes would compile its fallback for odd rows, so the reference is spelled out."""
    tensors = write(tmp_path, (67, 33))
    settings = json.loads(bytes(tensors[_STATE].tolist()))
    elements = 67 * 33
    codes = tensors[f"{_NAME}.absmax"].long()
    nested = tensors[f"{_NAME}.nested_absmax"].repeat_interleave(256)[: len(codes)]
    absmax = tensors[f"{_NAME}.nested_quant_map"][codes] * nested + torch.tensor(settings["nested_offset"])
    packed = tensors[_NAME].reshape(-1).long()
    nibbles = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:elements]
    expected = tensors[f"{_NAME}.quant_map"][nibbles] * absmax.repeat_interleave(64)[:elements]
    with TensorReader(tmp_path / "model.safetensors") as reader:
        weight = open_weight(reader, elements)
        for first, count in ((0, elements), (33, 33), (elements - 33, 33), (65, 1), (63, 130)):
            found = weight.read(first, count, Scratch())
            assert np.array_equal(found, expected[first : first + count].numpy()), (first, count)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(f"{_NAME}.nested_absmax"), r"tensor w\.weight\.nested_absmax"),
        (lambda tensors: tensors.pop(_NAME), r"tensor w\.weight of"),
        (lambda tensors: tensors.update({_NAME: tensors[_NAME][:-1]}), "packed bytes"),
        (lambda tensors: tensors.update({_STATE: settings_of(quant_type="fp4")}), "fp4"),
        (lambda tensors: tensors.update({_STATE: settings_of(nested_offset="x")}), "ValueError"),
    ],
)
def test_another_form_of_a_weight_is_a_mismatch(tmp_path: Path, change: object, said: str) -> None:
    tensors = write(tmp_path, (8, 64))
    assert callable(change)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with (
        TensorReader(tmp_path / "model.safetensors") as reader,
        pytest.raises(StageError, match=said) as caught,
    ):
        open_weight(reader, 512)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def settings_of(**changes: object) -> torch.Tensor:
    settings = {
        "quant_type": "nf4",
        "blocksize": 64,
        "nested_blocksize": 256,
        "nested_offset": 0.1,
        **changes,
    }
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
