from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.stages.train.loop import load_adapter_weights
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(x)
        return out


def _adapted() -> nn.Module:
    model: nn.Module = get_peft_model(_Model(), LoraConfig(r=2, target_modules=["proj"]))
    return model


def _saved(folder: Path) -> Path:
    torch.manual_seed(5)
    values = {name: torch.randn_like(value) for name, value in get_peft_model_state_dict(_adapted()).items()}
    save_file(values, folder / "adapter_model.safetensors")
    return folder


def test_a_saved_adapter_is_loaded_unchanged(tmp_path: Path) -> None:
    model = _adapted()
    load_adapter_weights(model, _saved(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in get_peft_model_state_dict(model).items())


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_an_adapter_of_another_shape_is_refused(tmp_path: Path, change: str) -> None:
    file = _saved(tmp_path) / "adapter_model.safetensors"
    values = load_file(file)
    if change == "missing":
        values.pop(next(iter(values)))
    else:
        values["base_model.model.other.lora_A.weight"] = torch.zeros(2, 4)
    save_file(values, file)
    with pytest.raises(RuntimeError, match=f"1 {change}"):
        load_adapter_weights(_adapted(), tmp_path)
