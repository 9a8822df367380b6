"""The adapter: added to a quantized model and saved in peft's format. Equal values give equal bytes."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model, get_peft_model_state_dict

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.master_weights import use_master_weights
from finetune_trainer.stages.train.settings import lora_config

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from finetune_trainer.contract.run_spec import Lora

_CONFIG = "adapter_config.json"


def add_adapter(model: Any, lora: Lora, quantized: Collection[str]) -> Any:
    """Return `model` with a new adapter on its `quantized` modules.

    The adapter's weights are float32 and multiply in the model's compute type (`stages.train.master_weights`).
    """
    adapted = get_peft_model(model, lora_config(lora, quantized))
    use_master_weights(adapted)
    return adapted


def save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json into `folder`, atomically. The weights are float32.

    Raises StageError(AdapterUntrained) if a value is not finite or nothing has been learned.
    """
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    _check_trained(weights)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), state_dict=weights, save_embedding_layers=False)
    config_path = partial / _CONFIG
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # peft names the folder of the loaded model, which means nothing on another machine.
    config["base_model_name_or_path"] = base_name
    # peft keeps a set, so the order is random.
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # peft's card is an empty form; MERGE writes the real card.
    (partial / "README.md").unlink(missing_ok=True)
    for path in partial.iterdir():
        # safetensors gives access to the owner only, but another user may serve the artifact.
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _check_trained(weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(
                Reason.ADAPTER_UNTRAINED,
                f"the adapter's values must be finite, found NaN or infinity in {name}; lower training.learningRate",
            )
    # B starts at zero, so the update B x A is zero until a step has changed it.
    if not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name):
        raise StageError(
            Reason.ADAPTER_UNTRAINED,
            "the adapter must have changed, found every B matrix zero; check learning rate, steps and labels",
        )
