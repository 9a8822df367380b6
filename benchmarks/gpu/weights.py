"""Random weights of a published shape, made on the device: as an original checkpoint, or quantized already.

Values do not change the time or the memory of a training step. Quantizing on the device takes seconds where PREPARE would
read and write the whole original, and the file has the same tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import torch
from finetune_trainer.model.describe import BaseModel, inspect_base_model, quantization_config
from finetune_trainer.workspace.layout import write_json_atomically
from safetensors.torch import save_file

from tests.support.workspaces import small_tokenizer

bnb: Any = bitsandbytes.functional
_FILE_BYTES = 2 << 30
_SEED = 5
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Weights:
    """`base/` and `model/` of a workspace in one folder, and the model's number of parameters."""

    folder: Path
    parameters: int

    @property
    def base(self) -> Path:
        """Config, tokenizer and layout.json."""
        return self.folder / "base"

    @property
    def model(self) -> Path:
        """The 4-bit checkpoint."""
        return self.folder / "model"


def write_small_files(config: dict[str, Any], folder: Path) -> None:
    """Write config.json, and a tokenizer whose ids are the first of the model's."""
    folder.mkdir(parents=True)
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    write_json_atomically(folder / "config.json", {"torch_dtype": "bfloat16", **config, **ids})


def write_original(config: dict[str, Any], folder: Path, device: str) -> None:
    """Write a model as people publish it: config, tokenizer and weights in bf16."""
    write_small_files(config, folder)
    described = inspect_base_model(folder, rehearsed=True)
    tensors = {name: value.cpu() for name, value in _random(described, device)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def quantized_weights(name: str, config: dict[str, Any], scratch: Path, device: str) -> Weights:
    """Return the 4-bit checkpoint of the model `name`, which is made by the first process that asks for it."""
    folder = scratch / "weights" / name
    done = folder / "done.json"
    if not done.is_file():
        write_json_atomically(done, {"parameters": _write_quantized(config, folder, device)})
    return Weights(folder, int(json.loads(done.read_text(encoding="utf-8"))["parameters"]))


def _write_quantized(config: dict[str, Any], folder: Path, device: str) -> int:
    write_small_files(config, folder / "base")
    described = inspect_base_model(folder / "base", rehearsed=True)
    quantized = {f"{module}.weight" for module in described.quantized}
    model = folder / "model"
    model.mkdir()
    files: list[dict[str, Any]] = []
    weight_map: dict[str, str] = {}
    waiting: dict[str, torch.Tensor] = {}
    originals: list[dict[str, Any]] = []

    def flush() -> None:
        name = f"model-{len(files) + 1:05d}.safetensors"
        save_file(waiting, model / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(waiting, name))
        files.append({"name": name, "tensors": list(originals)})
        waiting.clear()
        originals.clear()

    for name, value in _random(described, device):
        originals.append({"name": name, "dtype": "BF16", "shape": list(value.shape)})
        parts = _quantized(name, value) if name in quantized else {name: value}
        waiting |= {part: tensor.cpu().contiguous() for part, tensor in parts.items()}
        if sum(tensor.nbytes for tensor in waiting.values()) > _FILE_BYTES:
            flush()
    if waiting:
        flush()
    small = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))
    small["quantization_config"] = quantization_config().to_dict()
    write_json_atomically(model / "config.json", small)
    write_json_atomically(model / _INDEX, {"metadata": {}, "weight_map": weight_map})
    layout = {"files": files, "quantized": list(described.quantized)}
    write_json_atomically(folder / "base" / "layout.json", layout)
    return described.parameters


def _random(described: BaseModel, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Return each tensor of the weight files in bf16: matrices that keep the size of what they multiply, and norms of 1."""
    generator = torch.Generator(device).manual_seed(_SEED)
    for name, shape in described.parameter_shapes.items():
        if name in described.optional:
            continue
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.bfloat16, device=device)
            continue
        value = torch.randn(shape, dtype=torch.bfloat16, device=device, generator=generator)
        yield name, value.mul_(1 / math.sqrt(shape[-1]))


def _quantized(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of one NF4 weight with double quantization, by their names in a checkpoint."""
    packed, state = bnb.quantize_4bit(value, blocksize=64, compress_statistics=True, quant_type="nf4")
    return {name: packed, **{f"{name}.{suffix}": part for suffix, part in state.as_dict(packed=True).items()}}
