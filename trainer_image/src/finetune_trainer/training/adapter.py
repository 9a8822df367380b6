"""Save the trained adapter in peft's format, the same bytes for the same values."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = "adapter_config.json"


def save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json into `folder`, atomically.

    Raises StageError(AdapterUntrained) when a value is not finite or nothing has been learned.
    """
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    _check_trained(weights)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), state_dict=weights, save_embedding_layers=False)
    config_path = partial / _CONFIG
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # peft names the folder that the model was loaded from, which means nothing elsewhere.
    config["base_model_name_or_path"] = base_name
    # A set in peft, so its order is chance.
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # peft's card is a form to fill in; MERGE writes the real one.
    (partial / "README.md").unlink(missing_ok=True)
    for path in partial.iterdir():
        # safetensors writes for the owner alone; whoever serves the artifact is somebody else.
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
            "the adapter must have changed, found every B matrix zero; look at learning rate, steps and labels",
        )
