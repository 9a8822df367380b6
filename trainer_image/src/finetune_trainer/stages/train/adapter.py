"""The adapter: added to a quantized model and saved in peft's format. Equal values give equal bytes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners import tuners_utils
from peft.utils import transformers_weight_conversion
from safetensors.torch import load_file, save_file

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.adapter_targets import adapted_modules
from finetune_trainer.model.output_head import language_model
from finetune_trainer.model.packed_weight import packed_adapters, packed_weights
from finetune_trainer.stages.train.master_weights import use_master_weights
from finetune_trainer.stages.train.settings import lora_config

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from finetune_trainer.contract.run_spec import Lora

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def add_adapter(model: Any, lora: Lora, quantized: Collection[str]) -> Any:
    """Return `model` with a new adapter on its `quantized` modules, and on its packed parameters.

    The adapter's weights are float32 and multiply in the model's compute type (`stages.train.master_weights`).
    """
    # peft knows a `Conv1D`, which multiplies with its matrix itself.
    names = [name for name, weight in packed_weights(model).items() if not weight.parameter.is_conv1d]
    experts = [model.get_submodule(name) for name in names]
    parts = {part.module for weight in experts for part in weight.parameter.parts}
    with _own_targets():
        adapted = get_peft_model(model, lora_config(lora, set(quantized) - parts, names))
    use_master_weights(adapted)
    chosen = adapted_modules(lora.target_modules, quantized)
    for weight in experts:
        if any(part.module in chosen for part in weight.parameter.parts):
            weight.add_adapter(lora)
    return adapted


@contextmanager
def _own_targets() -> Iterator[None]:
    """Let peft adapt the modules that are named, and no others.

    It would move the adapter of feed-forward layers to experts, which have an adapter of their own here, and it would
    shorten a long list of names to endings, which experts have too.
    """
    changed: tuple[tuple[Any, str, Any], ...] = (
        (transformers_weight_conversion, "convert_peft_config_for_transformers", lambda *_, **__: None),
        (tuners_utils, "MIN_TARGET_MODULES_FOR_OPTIMIZATION", sys.maxsize),
    )
    before = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        with warnings.catch_warnings():
            # Packed parameters look like layers of an earlier adapter.
            warnings.filterwarnings("ignore", message=".*for a second time")
            # peft sets it for each `Conv1D` itself.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            yield
    finally:
        for (module, name, _), value in zip(changed, before, strict=True):
            setattr(module, name, value)


def checkpoint_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's trained values by the names of a checkpoint of the training."""
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    # peft may leave out what belongs to no module of its own.
    return {
        **get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False),
        **{name: value.detach() for name, value in packed_adapters(model).items()},
    }


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors by peft's names for the modules of the weight files.

    Each expert's matrix has its own, as if it were a linear layer. A tensor that holds all experts has a leading axis.
    """
    packed = packed_weights(language_model(model))
    weights = {
        name: tensor
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        # peft takes shared weights for a part of the adapter.
        if ".lora_" in name and not any(name.startswith(f"{_PREFIX}{own}.lora_") for own in packed)
    }
    for weight in packed.values():
        if not weight.lora_A:
            continue
        for module, (a, b, magnitude) in weight.factors().items():
            weights[f"{_PREFIX}{module}.lora_A.weight"] = a
            weights[f"{_PREFIX}{module}.lora_B.weight"] = b
            if magnitude is not None:
                weights[f"{_PREFIX}{module}.lora_magnitude_vector"] = magnitude
    return weights


def save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json into `folder`, atomically. The weights are float32.

    Raises StageError(AdapterUntrained) if a value is not finite or nothing has been learned.
    """
    weights = adapter_tensors(model)
    _check_trained(weights)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), state_dict=weights, save_embedding_layers=False)
    if packed_weights(model):
        # peft leaves out what belongs to no module of its own.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
    config_path = partial / _CONFIG
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # peft names the folder of the loaded model, which means nothing on another machine.
    config["base_model_name_or_path"] = base_name
    # peft keeps a set, so the order is random.
    adapted = any(weight.lora_A for weight in packed_weights(model).values())
    config["target_modules"] = sorted(_leaves(weights) if adapted else config["target_modules"])
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


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Load the adapter in `folder` into a model that has an adapter of the same shape.

    Raises RuntimeError if a tensor is missing or unexpected.
    """
    weights = load_file(folder / _WEIGHTS)
    packed = packed_adapters(model)
    # peft would take them for modules of its own.
    for name in packed.keys() & weights.keys():
        packed[name].data.copy_(weights.pop(name))
        packed.pop(name)
    outcome: Any = set_peft_model_state_dict(model, weights)
    own = set(packed_adapters(model))
    missing = [
        name for name in outcome.missing_keys if "lora_" in name and name.removesuffix(".default") not in own
    ]
    missing.extend(packed)
    if missing or outcome.unexpected_keys:
        raise RuntimeError(
            f"a checkpoint's adapter must fit the model, found {len(missing)} missing and "
            f"{len(outcome.unexpected_keys)} unexpected tensors in {folder.name}"
        )


def _leaves(weights: dict[str, torch.Tensor]) -> set[str]:
    """Return the last parts of the adapted modules' names, without those of tensors with an axis of experts."""
    return {
        name.partition(".lora_")[0].rpartition(".")[2]
        for name, tensor in weights.items()
        if ".lora_A" in name and tensor.ndim == 2
    }


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
