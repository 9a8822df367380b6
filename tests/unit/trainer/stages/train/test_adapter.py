from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.contract.run_spec import Lora
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.adapter import add_adapter, save_adapter
from transformers import LlamaConfig, LlamaForCausalLM


def adapted(variant: str = "Standard") -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    names = [name for name, module in model.named_modules() if name.endswith(("q_proj", "up_proj"))]
    lora = Lora.model_validate(
        {"rank": 2, "alpha": 4, "dropout": 0, "targetModules": "AllLinear", "variant": variant}
    )
    return add_adapter(model, lora, names)


def parameters(model: Any, part: str) -> list[torch.Tensor]:
    return [parameter for name, parameter in model.named_parameters() if part in name]


def learn(model: Any, value: float = 0.5) -> None:
    with torch.no_grad():
        parameters(model, "lora_B")[0].fill_(value)


def test_only_the_adapter_is_trained_and_its_weights_are_float32() -> None:
    model = adapted("DoRA")
    for part in ("lora_A", "lora_B", "lora_magnitude"):
        assert {(tensor.dtype, tensor.requires_grad) for tensor in parameters(model, part)} == {
            (torch.float32, True)
        }
    assert not any(tensor.requires_grad for tensor in parameters(model, "embed_tokens"))


def test_equal_adapters_are_saved_as_equal_bytes_that_all_users_can_read(tmp_path: Path) -> None:
    model = adapted()
    learn(model)
    for name in ("one", "two", "one"):
        save_adapter(model, tmp_path / name, "org/base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert not (tmp_path / "one" / "README.md").exists()


@pytest.mark.parametrize(("value", "said"), [(0.0, "every B matrix zero"), (float("nan"), "lora_B")])
def test_an_untrained_adapter_is_not_saved(tmp_path: Path, value: float, said: str) -> None:
    model = adapted()
    learn(model, value)
    with pytest.raises(StageError, match=said) as caught:
        save_adapter(model, tmp_path / "adapter", "base")
    assert caught.value.reason is Reason.ADAPTER_UNTRAINED
    assert list(tmp_path.iterdir()) == []
