from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.update import LowRankUpdate, read_updates
from safetensors.torch import save_file

A, B = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [-1.0]])


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def named(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"base_model.model.x.lora_A.weight": a, "base_model.model.x.lora_B.weight": b}


@pytest.mark.parametrize(("config", "scale"), [({}, 2.0), ({"use_rslora": True}, 8 / math.sqrt(4))])
def test_the_scale_follows_the_variant(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    (update,) = read_updates(write(tmp_path, named(A.bfloat16(), B.bfloat16()), **config)).values()
    assert update.scale == scale
    assert update.a.dtype == torch.float32


def test_each_row_of_a_weight_gets_its_part_of_the_update() -> None:
    update = LowRankUpdate(A, B, 2.0)
    weight = torch.zeros(2, 3)
    for first in (0, 1):
        update.apply(weight[first : first + 1], first)
    assert weight.tolist() == [[2.0, 4.0, 6.0], [-2.0, -4.0, -6.0]]


def test_a_magnitude_sets_the_norm_of_each_row() -> None:
    weight = torch.ones(2, 3)
    LowRankUpdate(A, B, 0.5, torch.tensor([3.0, 0.25])).apply(weight, 0)
    assert torch.linalg.vector_norm(weight, dim=1).tolist() == pytest.approx([3.0, 0.25])


def test_the_norm_uses_the_whole_matrix() -> None:
    update = LowRankUpdate(A, B, 2.0)
    assert update.squared_norm() == pytest.approx(float((2 * B @ A).square().sum()))


@pytest.mark.parametrize(
    ("tensors", "reason", "said"),
    [
        (named(A, torch.zeros(2, 1)), Reason.ADAPTER_UNTRAINED, "must not be zero"),
        (named(A, B * math.nan), Reason.ADAPTER_UNTRAINED, "lora_B"),
        ({**named(A, B), "base_model.model.lm_head.weight": A.clone()}, Reason.INTERNAL_ERROR, "lm_head"),
    ],
)
def test_an_adapter_that_cannot_be_merged_has_a_cause(
    tmp_path: Path, tensors: dict[str, torch.Tensor], reason: Reason, said: str
) -> None:
    with pytest.raises(StageError, match=said) as caught:
        read_updates(write(tmp_path, tensors))
    assert caught.value.reason is reason
