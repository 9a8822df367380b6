"""References for merging: the trained base in float32, by bitsandbytes, and synthetic checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import torch
from finetune_trainer.model.layout import BaseLayout, WeightFile
from finetune_trainer.model.load import load_quantized, quantized_modules
from finetune_trainer.model.safetensors_file import PlannedTensor
from safetensors.torch import save_file


def dequantized_model(checkpoint: Path) -> Any:
    """Return the 4-bit model in `checkpoint` as plain float32 layers, without a rounding to 16 bits."""
    model = load_quantized(checkpoint, "cpu")
    for name, module in quantized_modules(model).items():
        state = module.weight.quant_state
        state.dtype = torch.float32
        weight = bnb.dequantize_4bit(module.weight.data, state)
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        linear.weight = torch.nn.Parameter(weight)
        if module.bias is not None:
            linear.bias = torch.nn.Parameter(module.bias.data.float())
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, linear)
    # peft takes a quantized model for one with 4-bit layers.
    model.is_quantized = model.is_loaded_in_4bit = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.float().eval()


def quantized_tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight in a 4-bit checkpoint, quantized by bitsandbytes."""
    packed, state = bnb.quantize_4bit(
        weight.bfloat16(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    parts = {f"{name}.{suffix}": value.contiguous() for suffix, value in state.as_dict(packed=True).items()}
    return {name: packed, **parts}


def dequantized(tensors: dict[str, torch.Tensor], name: str, dtype: torch.dtype) -> torch.Tensor:
    """Return bitsandbytes' values of a weight of `quantized_tensors`."""
    state = bnb.QuantState.from_dict(
        {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}, torch.device("cpu")
    )
    state.dtype = dtype
    return bnb.dequantize_4bit(tensors[name], state)


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor], *, dtype: str = "BF16") -> BaseLayout:
    """Write one file with each weight in NF4, and a bias and a norm in bf16; return the layout in `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        tensors |= quantized_tensors(f"{name}.weight", weight)
    others = {"first.bias": torch.linspace(-1, 1, 8).bfloat16(), "norm.weight": torch.ones(3, 5).bfloat16()}
    save_file({**tensors, **others}, folder / "model.safetensors", metadata={"format": "pt"})
    shapes = {f"{name}.weight": tuple(weight.shape) for name, weight in weights.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in others.items()}
    planned = tuple(PlannedTensor(name, dtype, shape) for name, shape in shapes.items())
    return BaseLayout((WeightFile("model.safetensors", planned),), frozenset(weights))


def bits(values: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the bit patterns of floats, for comparisons that tell apart zeros and equal any NaN to itself."""
    wide: Any = values.contiguous().view(torch.uint16 if values.element_size() == 2 else torch.int32).numpy()
    return np.asarray(wide)
